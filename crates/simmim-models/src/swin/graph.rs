//! Forward description of a Swin transformer.

use super::parameters::CPB_HIDDEN;
use super::{Stage, SwinConfig, Version, Windows, log_coordinates};
use crate::encoder::Forward;
use crate::names::kept_branch;
use crate::vit::{BRANCHES, relative_position_index};
use simmim_engine::graph::TensorType;
use simmim_engine::ops::{
    CosineHeads, EmbedRows, Function, GatherRows, LayerNorm, Linear, PatchGather, Pointwise, QkvBias, RelativeBias,
    Reshape, Residual, WindowAttention, Zero,
};
use simmim_engine::{EngineError, Graph, ValueId};

type Result<T> = std::result::Result<T, EngineError>;

/// Describes the stages of one transformer in a graph.
pub(crate) struct Stages<'a> {
    pub(crate) graph: &'a mut Graph,
    config: &'a SwinConfig,
    prefix: &'static str,
    batch: usize,
    drop_path: bool,
}

impl<'a> Stages<'a> {
    /// `drop_path`: whether the blocks read `keep` inputs.
    pub(crate) fn new(
        graph: &'a mut Graph,
        config: &'a SwinConfig,
        prefix: &'static str,
        batch: usize,
        drop_path: bool,
    ) -> Self {
        Self { graph, config, prefix, batch, drop_path: drop_path && config.drop_path > 0.0 }
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
        let dim = self.graph.ty(x).columns();
        let weight = self.state(&format!("{name}.weight"), &[dim]);
        let bias = self.state(&format!("{name}.bias"), &[dim]);
        self.graph.apply1(LayerNorm { eps: self.config.eps }, &[x, weight, bias])
    }

    /// Projected and normed patches: `images` and `index [batch, patches]` -> `[batch, patches, dim]`.
    pub(crate) fn patches(&mut self, images: ValueId, index: ValueId) -> Result<ValueId> {
        let op = PatchGather { patch: self.config.patch_size, normalise: None };
        let values = self.graph.apply1(op, &[images, index])?;
        let projected = self.linear(values, "patch_embed.proj", self.config.embed_dim, false)?;
        self.layer_norm(projected, "patch_embed.norm")
    }

    /// Token rows: the patches, and with `mask_token` the templates.
    pub(crate) fn token_rows(&mut self, patches: ValueId, index: ValueId, mask_token: bool) -> Result<ValueId> {
        let c = self.config;
        let op = EmbedRows {
            tokens: c.patches(),
            mask_token,
            cls_token: false,
            registers: 0,
            pos_embed: c.absolute,
            offset: 0,
        };
        let mut inputs = vec![patches, index];
        if mask_token {
            inputs.push(self.state("mask_token", &[1, 1, c.embed_dim]));
        }
        if c.absolute {
            inputs.push(self.state("absolute_pos_embed", &[1, c.patches(), c.embed_dim]));
        }
        self.graph.apply1(op, &inputs)
    }

    /// The `qkv` layer of a block, and its bias.
    fn qkv(&mut self, x: ValueId, block: &str, width: usize) -> Result<(ValueId, Option<ValueId>)> {
        let weight = self.state(&format!("{block}.attn.qkv.weight"), &[3 * width, width]);
        let bias = match (self.config.version, self.config.qkv_bias) {
            (_, false) => None,
            (Version::V1, true) => Some(self.state(&format!("{block}.attn.qkv.bias"), &[3 * width])),
            (Version::V2, true) => {
                let parts = ["q_bias", "v_bias"].map(|part| self.state(&format!("{block}.attn.{part}"), &[width]));
                Some(self.graph.apply1(QkvBias, &parts)?)
            }
        };
        let inputs: Vec<ValueId> = [x, weight].into_iter().chain(bias).collect();
        let qkv = self.graph.apply1(Linear { bias: bias.is_some(), gelu: false, rows: None }, &inputs)?;
        Ok((qkv, bias))
    }

    /// The relative position bias of a block, `[heads, places, places]`.
    fn position_bias(&mut self, stage: &Stage, block: &str) -> Result<ValueId> {
        let (entries, places) = (stage.table_entries(), stage.window.0 * stage.window.1);
        let table = match self.config.version {
            Version::V1 => self.state(&format!("{block}.attn.relative_position_bias_table"), &[entries, stage.heads]),
            Version::V2 => self.continuous_bias(stage, block, entries)?,
        };
        let index = relative_position_index(stage.window.0, stage.window.1, false);
        let index = self.graph.constant("relative_position_index", &[places, places], index);
        self.graph.apply1(RelativeBias, &[table, index])
    }

    /// The table of version 2, `[entries, heads]`: 16 sigmoid of a small MLP on the logarithms of the offsets.
    fn continuous_bias(&mut self, stage: &Stage, block: &str, entries: usize) -> Result<ValueId> {
        let pretrained = self.config.pretrained_windows.get(stage.index).copied().unwrap_or(0);
        let offsets = log_coordinates(stage.window, pretrained);
        let offsets = self.graph.constant_floats("relative_coords_table", &[entries, 2], offsets);
        let hidden = self.linear(offsets, &format!("{block}.attn.cpb_mlp.0"), CPB_HIDDEN, false)?;
        let hidden = self.graph.apply1(Pointwise { function: Function::Relu }, &[hidden])?;
        let weight = self.state(&format!("{block}.attn.cpb_mlp.2.weight"), &[stage.heads, CPB_HIDDEN]);
        let table = self.graph.apply1(Linear::default(), &[hidden, weight])?;
        self.graph.apply1(Pointwise { function: Function::Sigmoid { scale: 16.0 } }, &[table])
    }

    fn residual(&mut self, x: ValueId, branch: ValueId, number: usize, part: &str) -> Result<ValueId> {
        let mut inputs = vec![x, branch];
        let op = Residual { gamma: false, keep: self.drop_path && number > 0 };
        if op.keep {
            inputs.push(self.graph.input(kept_branch(number, part), TensorType::f32([self.batch])));
        }
        self.graph.apply1(op, &inputs)
    }

    /// Attention of a block on its `qkv [batch, tokens, 3 width]` -> `[batch, tokens, width]`.
    fn attend(&mut self, qkv: ValueId, qkv_bias: Option<ValueId>, stage: &Stage, block: usize) -> Result<ValueId> {
        let name = block_name(stage, block);
        let windows = Windows::of(stage, stage.shift(block));
        let shape = [windows.count, windows.places];
        let pad = windows.padded(stage);
        let v2 = self.config.version == Version::V2;
        let head_dim = stage.width / stage.heads;
        let scale = if v2 { 1.0 } else { 1.0 / (head_dim as f32).sqrt() };
        let mut qkv = qkv;
        let mut beyond = match (pad, qkv_bias) {
            (false, _) => None,
            // What lies beyond the map is zero before the layer, and its bias after it.
            (true, Some(bias)) => Some(bias),
            (true, None) => Some(self.graph.apply1(Zero { shape: vec![3 * stage.width] }, &[])?),
        };
        if v2 {
            let op = CosineHeads { heads: stage.heads };
            let logit_scale = self.state(&format!("{name}.attn.logit_scale"), &[stage.heads, 1, 1]);
            qkv = self.graph.apply1(op, &[qkv, logit_scale])?;
            if let Some(row) = beyond {
                beyond = Some(self.graph.apply1(op, &[row, logit_scale])?);
            }
        }
        let bias = self.position_bias(stage, &name)?;
        let op = WindowAttention { heads: stage.heads, scale, region: windows.region.is_some(), bias: true, pad };
        let mut inputs = vec![qkv, self.graph.constant("windows", &shape, windows.index)];
        if let Some(region) = windows.region {
            inputs.push(self.graph.constant("regions", &shape, region));
        }
        inputs.push(bias);
        inputs.extend(beyond);
        self.graph.apply1(op, &inputs)
    }

    /// A whole block on `x [batch, tokens, width]`; with `chosen` only these rows `[batch, rows]` are kept, and computed after the
    /// attention.
    pub(crate) fn block(
        &mut self,
        x: ValueId,
        stage: &Stage,
        block: usize,
        chosen: Option<ValueId>,
    ) -> Result<ValueId> {
        let name = block_name(stage, block);
        self.graph.set_scope(&name);
        let v1 = self.config.version == Version::V1;
        let normed = if v1 { self.layer_norm(x, &format!("{name}.norm1"))? } else { x };
        let (qkv, bias) = self.qkv(normed, &name, stage.width)?;
        self.block_after_qkv(x, (qkv, bias), stage, block, chosen)
    }

    /// The first block, its first layers run on token rows and put together afterwards: `rows [rows, dim]`,
    /// `assemble [batch, tokens]`.
    pub(crate) fn first_block(
        &mut self,
        rows: ValueId,
        assemble: ValueId,
        stage: &Stage,
        chosen: Option<ValueId>,
    ) -> Result<ValueId> {
        let name = block_name(stage, 0);
        self.graph.set_scope(&name);
        let v1 = self.config.version == Version::V1;
        let normed = if v1 { self.layer_norm(rows, &format!("{name}.norm1"))? } else { rows };
        let (qkv_rows, bias) = self.qkv(normed, &name, stage.width)?;
        let qkv = self.graph.apply1(GatherRows, &[qkv_rows, assemble])?;
        let x = self.graph.apply1(GatherRows, &[rows, assemble])?;
        self.block_after_qkv(x, (qkv, bias), stage, 0, chosen)
    }

    fn block_after_qkv(
        &mut self,
        x: ValueId,
        (qkv, qkv_bias): (ValueId, Option<ValueId>),
        stage: &Stage,
        block: usize,
        chosen: Option<ValueId>,
    ) -> Result<ValueId> {
        let name = block_name(stage, block);
        let number = stage.first_block + block;
        let (width, v1) = (stage.width, self.config.version == Version::V1);
        let mut attended = self.attend(qkv, qkv_bias, stage, block)?;
        let mut x = x;
        if let Some(index) = chosen {
            attended = self.graph.apply1(GatherRows, &[attended, index])?;
            x = self.graph.apply1(GatherRows, &[x, index])?;
        }
        let mut branch = self.linear(attended, &format!("{name}.attn.proj"), width, false)?;
        if !v1 {
            branch = self.layer_norm(branch, &format!("{name}.norm1"))?;
        }
        let x = self.residual(x, branch, number, BRANCHES[0])?;
        let normed = if v1 { self.layer_norm(x, &format!("{name}.norm2"))? } else { x };
        let hidden = self.linear(normed, &format!("{name}.mlp.fc1"), self.config.mlp_dim(width), true)?;
        let mut branch = self.linear(hidden, &format!("{name}.mlp.fc2"), width, false)?;
        if !v1 {
            branch = self.layer_norm(branch, &format!("{name}.norm2"))?;
        }
        self.residual(x, branch, number, BRANCHES[1])
    }

    /// The block of that number over all stages; before the first of a stage the tokens of the one before are merged.
    pub(crate) fn numbered_block(&mut self, x: ValueId, number: usize, chosen: Option<ValueId>) -> Result<ValueId> {
        let stages = self.config.stages();
        let holds = |s: &&Stage| (s.first_block..s.first_block + s.depth).contains(&number);
        let Some(stage) = stages.iter().find(holds) else {
            return Err(EngineError::Invalid(format!("there is no block {number}")));
        };
        let block = number - stage.first_block;
        let x = if block == 0 && stage.index > 0 { self.merge(x, &stages[stage.index - 1])? } else { x };
        self.block(x, stage, block, chosen)
    }

    /// Joins each two by two tokens of a stage and halves their width together: `[batch, tokens, width]` ->
    /// `[batch, tokens / 4, 2 width]`.
    pub(crate) fn merge(&mut self, x: ValueId, stage: &Stage) -> Result<ValueId> {
        let name = format!("layers.{}.downsample", stage.index);
        self.graph.set_scope(&name);
        let ((rows, cols), width) = (stage.grid, stage.width);
        let joined = stage.tokens() / 4;
        let corner = |i: usize| {
            let (image, at, part) = (i / stage.tokens(), i / 4 % joined, i % 4);
            // Down first: above left, below left, above right, below right.
            let (y, x) = (at / (cols / 2) * 2 + part % 2, at % (cols / 2) * 2 + part / 2);
            (image * rows * cols + y * cols + x) as i32
        };
        let index: Vec<i32> = (0..self.batch * stage.tokens()).map(corner).collect();
        let index = self.graph.constant("corners", &[self.batch, joined, 4], index);
        let corners = self.graph.apply1(GatherRows, &[x, index])?;
        let x = self.graph.apply1(Reshape { shape: vec![self.batch, joined, 4 * width] }, &[corners])?;
        let weight = self.state(&format!("{name}.reduction.weight"), &[2 * width, 4 * width]);
        match self.config.version {
            Version::V1 => {
                let normed = self.layer_norm(x, &format!("{name}.norm"))?;
                self.graph.apply1(Linear::default(), &[normed, weight])
            }
            Version::V2 => {
                let reduced = self.graph.apply1(Linear::default(), &[x, weight])?;
                self.layer_norm(reduced, &format!("{name}.norm"))
            }
        }
    }
}

impl Forward for Stages<'_> {
    fn embedded(&mut self, images: ValueId) -> Result<ValueId> {
        let (batch, patches) = (self.batch, self.config.patches());
        let every = (0..batch * patches).map(|i| (i % patches) as i32).collect();
        let every = self.graph.constant("every_patch", &[batch, patches], every);
        let embedded = self.patches(images, every)?;
        if !self.config.absolute {
            return Ok(embedded);
        }
        let rows = self.token_rows(embedded, every, false)?;
        let shape = vec![batch, patches, self.config.embed_dim];
        self.graph.apply1(Reshape { shape }, &[rows])
    }

    fn next_block(&mut self, x: ValueId, block: usize) -> Result<ValueId> {
        self.numbered_block(x, block, None)
    }

    fn class_block(&mut self, _x: ValueId, _block: usize) -> Result<ValueId> {
        Err(EngineError::Invalid("a Swin transformer has no class token".into()))
    }

    fn final_norm(&mut self, x: ValueId) -> Result<ValueId> {
        self.graph.set_scope("");
        if self.config.final_norm { self.layer_norm(x, "norm") } else { Ok(x) }
    }

    fn output(&mut self, name: String, value: ValueId) {
        self.graph.output(name, value);
    }
}

fn block_name(stage: &Stage, block: usize) -> String {
    format!("layers.{}.blocks.{block}", stage.index)
}
