//! Forward description of a vision transformer.

use super::{BRANCHES, Position, QkvBias as QkvBiasKind, VitConfig, relative_position_index};
use crate::encoder::Forward;
use crate::names::kept_branch;
use simmim_engine::graph::TensorType;
use simmim_engine::ops::{
    Attention, EmbedRows, GatherRows, LayerNorm, Linear, Packing, PatchGather, QkvBias, RelativeBias, Residual,
    RowRange,
};
use simmim_engine::{EngineError, Graph, ValueId};

type Result<T> = std::result::Result<T, EngineError>;

/// Which rows a block's second half runs on.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Rows {
    /// All tokens.
    All,
    /// The rows of an index `[batch, rows]`; with a bias also the position of each.
    Chosen {
        /// Flat rows of `[batch tokens, dim]`.
        index: ValueId,
        /// Position of each row among the tokens of its image.
        query: Option<ValueId>,
    },
}

/// Describes the blocks of one transformer in a graph.
pub(crate) struct Blocks<'a> {
    pub(crate) graph: &'a mut Graph,
    config: &'a VitConfig,
    prefix: &'static str,
    batch: usize,
    drop_path: bool,
    shared_bias: Option<ValueId>,
}

impl<'a> Blocks<'a> {
    /// `drop_path`: whether the blocks read `keep` inputs.
    pub(crate) fn new(
        graph: &'a mut Graph,
        config: &'a VitConfig,
        prefix: &'static str,
        batch: usize,
        drop_path: bool,
    ) -> Self {
        Self { graph, config, prefix, batch, drop_path, shared_bias: None }
    }

    fn state(&mut self, name: &str, shape: &[usize]) -> ValueId {
        self.graph.state(&format!("{}{name}", self.prefix), shape)
    }

    fn linear(&mut self, x: ValueId, name: &str, out: usize, gelu: bool) -> Result<ValueId> {
        let inside = self.graph.ty(x).columns();
        let weight = self.state(&format!("{name}.weight"), &[out, inside]);
        let bias = self.state(&format!("{name}.bias"), &[out]);
        self.graph.apply1(Linear { bias: true, gelu, rows: None }, &[x, weight, bias])
    }

    pub(crate) fn layer_norm(&mut self, x: ValueId, name: &str) -> Result<ValueId> {
        let dim = self.config.embed_dim;
        let weight = self.state(&format!("{name}.weight"), &[dim]);
        let bias = self.state(&format!("{name}.bias"), &[dim]);
        self.graph.apply1(LayerNorm { eps: self.config.eps }, &[x, weight, bias])
    }

    /// Projected patches: `images` and `index [batch, patches]` -> `[batch, patches, dim]`.
    pub(crate) fn patches(&mut self, images: ValueId, index: ValueId) -> Result<ValueId> {
        let values =
            self.graph.apply1(PatchGather { patch: self.config.patch_size, normalise: None }, &[images, index])?;
        self.linear(values, "patch_embed.proj", self.config.embed_dim, false)
    }

    /// Token rows: the patches, with `mask_token` one template for each position, and with `prefix` class token and registers.
    pub(crate) fn token_rows(
        &mut self,
        patches: ValueId,
        index: ValueId,
        mask_token: bool,
        prefix: bool,
    ) -> Result<ValueId> {
        let c = self.config;
        let cls_token = prefix && c.class_token;
        let op = EmbedRows {
            tokens: c.patches(),
            mask_token,
            cls_token,
            registers: if prefix { c.registers } else { 0 },
            pos_embed: c.position == Position::Absolute,
            offset: usize::from(c.class_token),
        };
        let mut inputs = vec![patches, index];
        if mask_token {
            inputs.push(self.state("mask_token", &[1, 1, c.embed_dim]));
        }
        if op.cls_token {
            inputs.push(self.state("cls_token", &[1, 1, c.embed_dim]));
        }
        if op.registers > 0 {
            inputs.push(self.state("reg_token", &[1, op.registers, c.embed_dim]));
        }
        if op.pos_embed {
            inputs.push(self.state("pos_embed", &[1, c.positions(), c.embed_dim]));
        }
        self.graph.apply1(op, &inputs)
    }

    /// The `qkv` layer of a block, or some rows of its weight.
    fn qkv(&mut self, x: ValueId, block: usize, rows: Option<RowRange>) -> Result<ValueId> {
        let dim = self.config.embed_dim;
        let name = |tail: &str| format!("blocks.{block}.attn.{tail}");
        let weight = self.state(&name("qkv.weight"), &[3 * dim, dim]);
        let bias = match self.config.qkv_bias {
            QkvBiasKind::Full => Some(self.state(&name("qkv.bias"), &[3 * dim])),
            QkvBiasKind::NoKey => {
                let parts = [self.state(&name("q_bias"), &[dim]), self.state(&name("v_bias"), &[dim])];
                Some(self.graph.apply1(QkvBias, &parts)?)
            }
            QkvBiasKind::None => None,
        };
        let inputs: Vec<ValueId> = [x, weight].into_iter().chain(bias).collect();
        self.graph.apply1(Linear { bias: bias.is_some(), gelu: false, rows }, &inputs)
    }

    /// The relative position bias of a block, `[heads, tokens, tokens]`.
    fn bias(&mut self, block: usize, prefix: bool) -> Result<Option<ValueId>> {
        let name = match self.config.position {
            Position::Absolute | Position::None => return Ok(None),
            Position::SharedRelative if self.shared_bias.is_some() => return Ok(self.shared_bias),
            Position::SharedRelative => "rel_pos_bias.relative_position_bias_table".to_owned(),
            Position::Relative => format!("blocks.{block}.attn.relative_position_bias_table"),
        };
        let (rows, cols) = self.config.grid();
        // A model with registers has no relative positions.
        let class_token = prefix && self.config.class_token;
        let tokens = rows * cols + usize::from(class_token);
        let entries = super::relative::table_entries(rows, cols, self.config.class_token);
        let table = self.state(&name, &[entries, self.config.num_heads]);
        let data = relative_position_index(rows, cols, class_token);
        let index = self.graph.constant("relative_position_index", &[tokens, tokens], data);
        let bias = self.graph.apply1(RelativeBias, &[table, index])?;
        if self.config.position == Position::SharedRelative {
            self.shared_bias = Some(bias);
        }
        Ok(Some(bias))
    }

    fn residual(&mut self, x: ValueId, branch: ValueId, block: usize, gamma: &str, part: &str) -> Result<ValueId> {
        let mut inputs = vec![x, branch];
        let drops = self.drop_path && self.config.drop_path_of(block) > 0.0;
        let op = Residual { gamma: self.config.layer_scale.is_some(), keep: drops };
        if op.gamma {
            inputs.push(self.state(&format!("blocks.{block}.{gamma}"), &[self.config.embed_dim]));
        }
        if op.keep {
            inputs.push(self.graph.input(kept_branch(block, part), TensorType::f32([self.batch])));
        }
        self.graph.apply1(op, &inputs)
    }

    /// A whole block on `x [batch, tokens, dim]`. `prefix`: whether the tokens begin with class token and registers.
    pub(crate) fn block(&mut self, x: ValueId, block: usize, prefix: bool) -> Result<ValueId> {
        self.graph.set_scope(format!("blocks.{block}"));
        let normed = self.layer_norm(x, &format!("blocks.{block}.norm1"))?;
        let qkv = self.qkv(normed, block, None)?;
        self.block_after_qkv(x, qkv, block, prefix)
    }

    /// The first block, its first layers run on token rows and put together afterwards: `rows [rows, dim]`,
    /// `assemble [batch, tokens]`.
    pub(crate) fn first_block(&mut self, rows: ValueId, assemble: ValueId, prefix: bool) -> Result<ValueId> {
        self.graph.set_scope("blocks.0");
        let normed = self.layer_norm(rows, "blocks.0.norm1")?;
        let qkv_rows = self.qkv(normed, 0, None)?;
        let qkv = self.graph.apply1(GatherRows, &[qkv_rows, assemble])?;
        let x = self.graph.apply1(GatherRows, &[rows, assemble])?;
        self.block_after_qkv(x, qkv, 0, prefix)
    }

    fn block_after_qkv(&mut self, x: ValueId, qkv: ValueId, block: usize, prefix: bool) -> Result<ValueId> {
        let bias = self.bias(block, prefix)?;
        let op = Attention { heads: self.config.num_heads, packing: Packing::Packed, bias: bias.is_some() };
        let inputs: Vec<ValueId> = [qkv].into_iter().chain(bias).collect();
        let attended = self.graph.apply1(op, &inputs)?;
        self.block_after_attention(x, attended, block)
    }

    /// The last block: keys and values of all tokens, everything else on the chosen rows only.
    pub(crate) fn last_block(&mut self, x: ValueId, block: usize, rows: Rows, prefix: bool) -> Result<ValueId> {
        let Rows::Chosen { index, query } = rows else { return self.block(x, block, prefix) };
        self.graph.set_scope(format!("blocks.{block}"));
        let dim = self.config.embed_dim;
        let normed = self.layer_norm(x, &format!("blocks.{block}.norm1"))?;
        let kv = self.qkv(normed, block, Some(RowRange { start: dim, len: 2 * dim }))?;
        let chosen = self.graph.apply1(GatherRows, &[normed, index])?;
        let q = self.qkv(chosen, block, Some(RowRange { start: 0, len: dim }))?;
        let bias = self.bias(block, prefix)?;
        let op = Attention { heads: self.config.num_heads, packing: Packing::Split, bias: bias.is_some() };
        let inputs: Vec<ValueId> = [q, kv].into_iter().chain(bias).chain(bias.and(query)).collect();
        let attended = self.graph.apply1(op, &inputs)?;
        let x = self.graph.apply1(GatherRows, &[x, index])?;
        self.block_after_attention(x, attended, block)
    }

    fn block_after_attention(&mut self, x: ValueId, attended: ValueId, block: usize) -> Result<ValueId> {
        let name = |tail: &str| format!("blocks.{block}.{tail}");
        let (dim, mlp) = (self.config.embed_dim, self.config.mlp_dim());
        let branch = self.linear(attended, &name("attn.proj"), dim, false)?;
        let x = self.residual(x, branch, block, "gamma_1", BRANCHES[0])?;
        let normed = self.layer_norm(x, &name("norm2"))?;
        let hidden = self.linear(normed, &name("mlp.fc1"), mlp, true)?;
        let branch = self.linear(hidden, &name("mlp.fc2"), dim, false)?;
        self.residual(x, branch, block, "gamma_2", BRANCHES[1])
    }
}

impl Forward for Blocks<'_> {
    fn embedded(&mut self, images: ValueId) -> Result<ValueId> {
        embedded_tokens(self, images)
    }

    fn next_block(&mut self, x: ValueId, block: usize) -> Result<ValueId> {
        self.block(x, block, true)
    }

    fn class_block(&mut self, x: ValueId, block: usize) -> Result<ValueId> {
        let (batch, tokens) = (self.batch, self.config.tokens());
        let rows = (0..batch).map(|b| (b * tokens) as i32).collect();
        let index = self.graph.constant("class_rows", &[batch, 1], rows);
        let relative = matches!(self.config.position, Position::SharedRelative | Position::Relative);
        let query = relative.then(|| self.graph.constant("class_query", &[batch, 1], vec![0; batch]));
        self.last_block(x, block, Rows::Chosen { index, query }, true)
    }

    fn final_norm(&mut self, x: ValueId) -> Result<ValueId> {
        self.graph.set_scope("");
        if self.config.final_norm { self.layer_norm(x, "norm") } else { Ok(x) }
    }

    fn output(&mut self, name: String, value: ValueId) {
        self.graph.output(name, value);
    }
}

/// All tokens of whole images before the first block, `[batch, tokens, dim]`.
fn embedded_tokens(blocks: &mut Blocks<'_>, images: ValueId) -> Result<ValueId> {
    let (config, batch) = (blocks.config, blocks.batch);
    let patches = config.patches();
    let every: Vec<i32> = (0..batch * patches).map(|i| (i % patches) as i32).collect();
    let every = blocks.graph.constant("every_patch", &[batch, patches], every);
    let assemble = all_visible(config, batch);
    let assemble = blocks.graph.constant("assemble_index", &[batch, config.tokens()], assemble);
    let embedded = blocks.patches(images, every)?;
    let rows = blocks.token_rows(embedded, every, false, true)?;
    blocks.graph.apply1(GatherRows, &[rows, assemble])
}

/// Assembly of tokens where every patch is visible: the rows of class token and registers, then the image's patches.
fn all_visible(config: &VitConfig, batch: usize) -> Vec<i32> {
    let patches = config.patches();
    let prefix = batch * patches..batch * patches + config.prefix();
    (0..batch).flat_map(|b| prefix.clone().chain(b * patches..(b + 1) * patches).map(|row| row as i32)).collect()
}
