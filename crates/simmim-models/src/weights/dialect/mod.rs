//! Dialects: the names under which others keep the parameters of a vision transformer or a Swin transformer.
//!
//! A dialect is a table of rules that are read in both directions. Inside the program parameters carry the names of
//! microsoft/SimMIM with the encoder behind `encoder.` and a classifier's `fc_norm.*` and `head.*` bare.

mod rules;
mod swin_rules;

use super::{Tensor, Weights};
use rules::{How, Rule, capture, fill};
use std::collections::{BTreeMap, BTreeSet};

/// A way of naming parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// microsoft/SimMIM, and this program.
    Official,
    /// timm.
    Timm,
    /// The official MAE code.
    Mae,
    /// The official DINOv2 code.
    DinoV2,
    /// Hugging Face's ViT.
    HfVit,
    /// Hugging Face's ViTMAE.
    HfMae,
    /// Hugging Face's DINOv2, with registers or without.
    HfDinoV2,
    /// Hugging Face's BEiT.
    HfBeit,
    /// mmpretrain.
    MmPretrain,
    /// A Swin transformer by microsoft/SimMIM, microsoft/Swin-Transformer, and this program.
    OfficialSwin,
    /// timm's Swin transformers.
    TimmSwin,
    /// Hugging Face's Swin transformer.
    HfSwin,
    /// Hugging Face's second one.
    HfSwinV2,
    /// mmpretrain's Swin transformer.
    MmSwin,
    /// mmpretrain's second one.
    MmSwinV2,
}

/// What a dialect consists of.
struct Table {
    name: &'static str,
    /// Rules of the encoder, whose names may stand behind one of `prefixes`.
    encoder: &'static [&'static [Rule]],
    /// What may stand before the encoder's names; the first one is written.
    prefixes: &'static [&'static str],
    /// Rules of what stands beside the encoder.
    beside: &'static [&'static [Rule]],
    /// Names that only this dialect has, without prefix; of one at least a tensor must be there.
    marks: &'static [&'static str],
    /// Names that rule this dialect out.
    not: &'static [&'static str],
}

impl Dialect {
    /// All, the more telling ones first.
    pub const ALL: [Self; 15] = [
        Self::Mae,
        Self::DinoV2,
        Self::HfMae,
        Self::HfDinoV2,
        Self::HfBeit,
        Self::HfVit,
        Self::MmPretrain,
        Self::Timm,
        Self::Official,
        Self::HfSwinV2,
        Self::HfSwin,
        Self::MmSwinV2,
        Self::MmSwin,
        Self::TimmSwin,
        Self::OfficialSwin,
    ];

    fn table(self) -> Table {
        use rules::{
            BLOCKS, DECODER, DINOV2, HEAD, HF_BEIT, HF_COMMON, HF_DINOV2, HF_DINOV2_IN_MEMORY, HF_HEAD, HF_IN_MEMORY,
            HF_MASK_TOKEN, HF_VIT, LAYER_SCALE, MMPRETRAIN, MMPRETRAIN_HEAD, OFFICIAL, REGISTERS, RELATIVE,
        };
        use swin_rules::{
            AT_THE_END, AT_THE_START, HF_SWIN, HF_SWIN_IN_MEMORY, HF_SWIN_V1, HF_SWIN_V2, MASK_TOKEN, MM_HEAD, MM_SWIN,
            MM_SWIN_V1, MM_SWIN_V2, SWIN, TIMM_HEAD,
        };
        const BARE: &[&str] = &["", "backbone.", "model.", "visual."];
        match self {
            Self::Official => Table {
                name: "microsoft/SimMIM",
                encoder: &[BLOCKS, OFFICIAL, REGISTERS],
                prefixes: &["encoder.", ""],
                beside: &[DECODER, HEAD],
                marks: &[],
                not: &["decoder_embed.weight", "blocks.0.ls1.gamma", "register_tokens"],
            },
            Self::Timm => Table {
                name: "timm",
                encoder: &[BLOCKS, LAYER_SCALE, REGISTERS, RELATIVE],
                prefixes: BARE,
                beside: &[HEAD],
                marks: &[],
                not: &["decoder_embed.weight", "mask_token", "blocks.0.gamma_1"],
            },
            Self::Mae => Table {
                name: "MAE",
                encoder: &[BLOCKS],
                prefixes: &[""],
                beside: &[],
                marks: &["decoder_embed.weight"],
                not: &[],
            },
            Self::DinoV2 => Table {
                name: "DINOv2",
                encoder: &[BLOCKS, LAYER_SCALE, DINOV2],
                prefixes: BARE,
                beside: &[],
                marks: &["register_tokens", "mask_token"],
                not: &["decoder_embed.weight", "rel_pos_bias.relative_position_bias_table", "blocks.0.gamma_1"],
            },
            Self::HfVit => Table {
                name: "Hugging Face ViT",
                encoder: &[HF_COMMON, HF_VIT, HF_MASK_TOKEN, HF_IN_MEMORY],
                prefixes: &["vit.", ""],
                beside: &[HF_HEAD, DECODER],
                marks: &["encoder.layer.0.layernorm_before.weight", "layers.0.layernorm_before.weight"],
                not: &["encoder.layer.0.lambda_1"],
            },
            Self::HfMae => Table {
                name: "Hugging Face ViTMAE",
                encoder: &[HF_COMMON, HF_VIT, HF_IN_MEMORY],
                prefixes: &["vit.", ""],
                beside: &[],
                marks: &["decoder.decoder_embed.weight"],
                not: &[],
            },
            Self::HfDinoV2 => Table {
                name: "Hugging Face DINOv2",
                encoder: &[HF_COMMON, HF_DINOV2, HF_DINOV2_IN_MEMORY],
                prefixes: &["", "dinov2.", "dinov2_with_registers.", "backbone."],
                beside: &[],
                marks: &["encoder.layer.0.norm1.weight"],
                not: &[],
            },
            Self::HfBeit => Table {
                name: "Hugging Face BEiT",
                encoder: &[HF_BEIT],
                prefixes: &["", "beit.", "data2vec_vision."],
                beside: &[HF_HEAD],
                marks: &["encoder.layer.0.lambda_1", "encoder.relative_position_bias.relative_position_bias_table"],
                not: &[],
            },
            Self::MmPretrain => Table {
                name: "mmpretrain",
                encoder: &[MMPRETRAIN],
                prefixes: &["backbone.", ""],
                beside: &[MMPRETRAIN_HEAD],
                marks: &["layers.0.ffn.layers.1.weight"],
                not: &[],
            },
            Self::OfficialSwin => Table {
                name: "microsoft/SimMIM",
                encoder: &[SWIN, AT_THE_END, MASK_TOKEN],
                prefixes: &["encoder.", ""],
                beside: &[DECODER, HEAD],
                marks: &["layers.0.blocks.0.norm1.weight"],
                not: &["head.fc.weight"],
            },
            Self::TimmSwin => Table {
                name: "timm",
                encoder: &[SWIN, AT_THE_START],
                prefixes: BARE,
                beside: &[TIMM_HEAD],
                marks: &["layers.0.blocks.0.norm1.weight"],
                not: &["layers.0.downsample.reduction.weight", "mask_token"],
            },
            Self::HfSwin => Table {
                name: "Hugging Face Swin",
                encoder: &[HF_SWIN, HF_SWIN_V1, HF_SWIN_IN_MEMORY],
                prefixes: &["swin.", ""],
                beside: &[HF_HEAD, DECODER],
                marks: &["encoder.layers.0.blocks.0.layernorm_before.weight"],
                not: &["encoder.layers.0.blocks.0.attention.self.logit_scale"],
            },
            Self::HfSwinV2 => Table {
                name: "Hugging Face Swin v2",
                encoder: &[HF_SWIN, HF_SWIN_V2],
                prefixes: &["swinv2.", ""],
                beside: &[HF_HEAD, DECODER],
                marks: &["encoder.layers.0.blocks.0.attention.self.logit_scale"],
                not: &[],
            },
            Self::MmSwin => Table {
                name: "mmpretrain",
                encoder: &[MM_SWIN, MM_SWIN_V1],
                prefixes: &["backbone.", ""],
                beside: &[MM_HEAD],
                marks: &["stages.0.blocks.0.attn.w_msa.proj.weight"],
                not: &["stages.0.blocks.0.attn.w_msa.logit_scale"],
            },
            Self::MmSwinV2 => Table {
                name: "mmpretrain",
                encoder: &[MM_SWIN, MM_SWIN_V2],
                prefixes: &["backbone.", ""],
                beside: &[MM_HEAD],
                marks: &["stages.0.blocks.0.attn.w_msa.logit_scale"],
                not: &[],
            },
        }
    }

    /// The name in messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.table().name
    }

    /// Weights under our names, put into this dialect. `prefixed`: whether the encoder's names stand behind the dialect's prefix, as in a
    /// model with a head. What the dialect has no name for is returned beside.
    #[must_use]
    pub fn write(self, weights: &Weights, prefixed: bool) -> (Weights, Vec<String>) {
        let table = self.table();
        let prefix = if prefixed { table.prefixes.iter().find(|p| !p.is_empty()).copied().unwrap_or("") } else { "" };
        let (mut out, mut unknown) = (Weights::new(), Vec::new());
        for (name, tensor) in weights {
            let rule = |rules: &&'static [&'static [Rule]]| {
                rules.iter().copied().flatten().find_map(|rule| Some((rule, capture(rule.ours, name)?)))
            };
            let encoder = rule(&table.encoder).map(|found| (prefix, found));
            let Some((prefix, (rule, values))) = encoder.or_else(|| rule(&table.beside).map(|found| ("", found)))
            else {
                unknown.push(name.clone());
                continue;
            };
            let names = rule.theirs.iter().map(|theirs| format!("{prefix}{}", fill(theirs, &values)));
            match rule.how {
                How::Same => out.extend(names.map(|name| (name, tensor.clone()))),
                How::Stacked => out.extend(names.zip(unstack(tensor, rule.theirs.len()))),
                How::Unfolded => out.extend(names.map(|name| (name, unfold(tensor)))),
            }
        }
        (out, unknown)
    }
}

/// Parts of equal height along the first axis.
fn unstack(tensor: &Tensor, parts: usize) -> Vec<Tensor> {
    let mut shape = tensor.shape.clone();
    shape[0] /= parts;
    let len: usize = shape.iter().product();
    tensor.data.chunks_exact(len.max(1)).map(|part| Tensor { shape: shape.clone(), data: part.to_vec() }).collect()
}

/// The four tokens of a reduction, counted by columns, as the last axis of `unfold`, which counts channels before places and those by rows.
fn unfold(tensor: &Tensor) -> Tensor {
    regroup(tensor, |width, at| (at % 4 % 2 * 2 + at % 4 / 2) * (width / 4) + at / 4)
}

/// The reverse of [`unfold`].
fn fold(tensor: Tensor) -> Tensor {
    regroup(&tensor, |width, at| {
        let (place, channel) = (at / (width / 4), at % (width / 4));
        channel * 4 + place % 2 * 2 + place / 2
    })
}

/// Rows whose value `at` comes from `from(width, at)`; rows that are not of four equal parts stay as they are.
fn regroup(tensor: &Tensor, from: impl Fn(usize, usize) -> usize) -> Tensor {
    let width = tensor.shape.last().copied().unwrap_or(0);
    if width == 0 || !width.is_multiple_of(4) {
        return tensor.clone();
    }
    let rows = tensor.data.chunks_exact(width);
    let data = rows.flat_map(|row| (0..width).map(|at| row[from(width, at)])).collect();
    Tensor { shape: tensor.shape.clone(), data }
}

/// The rule of the patch projection, which every model has.
const PROJECTION: &str = "encoder.patch_embed.proj.*";

/// What wrappers of PyTorch put before all names.
const WRAPPERS: [&str; 4] = ["module.", "_orig_mod.", "model.", "student."];

/// How the names of a file are read.
#[derive(Debug, Clone)]
pub struct Translation {
    /// The dialect.
    pub dialect: Dialect,
    /// What stands before all names in the file: `module.` of a wrapper, `backbone.`.
    pub prefix: String,
    /// For each of our names theirs, one or several that are stacked.
    pub names: BTreeMap<String, Vec<String>>,
    /// Those of our names whose values stand in another order in the file.
    reordered: BTreeSet<String>,
    /// Names that are none of the model's parameters.
    pub left: Vec<String>,
}

impl Translation {
    /// Finds the dialect of which most names are known; none where no patch projection is among them.
    #[must_use]
    pub fn find(names: &[&str]) -> Option<Self> {
        let mut best: Option<Self> = None;
        for wrapper in wrappers(names) {
            for dialect in Dialect::ALL {
                for &prefix in dialect.table().prefixes {
                    let found = Self::through(names, &wrapper, dialect, prefix);
                    if let Some(found) = found
                        && best.as_ref().is_none_or(|b| found.names.len() > b.names.len())
                    {
                        best = Some(found);
                    }
                }
            }
        }
        best
    }

    fn through(names: &[&str], wrapper: &str, dialect: Dialect, prefix: &str) -> Option<Self> {
        let table = dialect.table();
        let inner: Vec<(&str, &str)> = names.iter().filter_map(|n| Some((*n, n.strip_prefix(wrapper)?))).collect();
        let has = |name: &str| inner.iter().any(|(_, n)| *n == name || n.strip_prefix(prefix) == Some(name));
        if table.not.iter().any(|n| has(n)) || !(table.marks.is_empty() || table.marks.iter().any(|n| has(n))) {
            return None;
        }
        let projection = table.encoder.iter().copied().flatten().filter(|rule| rule.ours == PROJECTION);
        let projection = projection.flat_map(|rule| rule.theirs).map(|theirs| theirs.replace('*', "weight"));
        if !projection.into_iter().any(|p| inner.iter().any(|(_, n)| n.strip_prefix(prefix) == Some(&*p))) {
            return None;
        }
        let chunks = inner.iter().any(|(_, n)| n.strip_prefix(prefix).is_some_and(in_chunks));
        let mut found = Self {
            dialect,
            prefix: format!("{wrapper}{prefix}"),
            names: BTreeMap::new(),
            reordered: BTreeSet::new(),
            left: names.iter().filter(|n| !n.starts_with(wrapper)).map(|n| (*n).to_owned()).collect(),
        };
        for (whole, name) in inner {
            let encoder = name.strip_prefix(prefix).and_then(|name| {
                if chunks { place(table.encoder, &without_chunk(name)) } else { place(table.encoder, name) }
            });
            match encoder.or_else(|| place(table.beside, name)) {
                Some((ours, at, rule)) => {
                    if rule.how == How::Unfolded {
                        found.reordered.insert(ours.clone());
                    }
                    let parts = found.names.entry(ours).or_insert_with(|| vec![String::new(); rule.theirs.len()]);
                    if let Some(part) = parts.get_mut(at) {
                        whole.clone_into(part);
                    }
                }
                None => found.left.push(whole.to_owned()),
            }
        }
        Some(found)
    }

    /// Parts of stacked parameters that the file lacks, as our names.
    #[must_use]
    pub fn incomplete(&self) -> Vec<String> {
        let lacking = |(_, parts): &(&String, &Vec<String>)| parts.iter().any(String::is_empty);
        self.names.iter().filter(lacking).map(|(name, _)| name.clone()).collect()
    }

    /// Names of the file that belong to the encoder, but to no parameter that this program knows: the model is another one.
    pub fn odd(&self) -> impl Iterator<Item = &str> {
        const INSIDE: [&str; 11] = [
            "blocks.",
            "layers.",
            "layer.",
            "stages.",
            "encoder.",
            "patch_embed.",
            "embeddings.",
            "norm",
            "rope",
            "dist_token",
            "reg",
        ];
        const OUTSIDE: [&str; 7] = [
            "mask_token",
            "pooler.",
            "relative_position_index",
            "relative_coords_table",
            "attn_mask",
            "fc_norm.",
            "head.",
        ];
        self.left.iter().map(String::as_str).filter(|name| {
            let Some(inner) = name.strip_prefix(&*self.prefix) else { return false };
            let inside = self.prefix == "encoder." || INSIDE.iter().any(|start| inner.starts_with(start));
            inside && !OUTSIDE.iter().any(|part| inner.contains(part))
        })
    }

    /// Every name of the file that is used.
    pub fn used(&self) -> impl Iterator<Item = &str> + Clone {
        self.names.values().flatten().map(String::as_str).filter(|n| !n.is_empty())
    }

    /// Weights of the file under our names; parameters that lack a part are left out.
    #[must_use]
    pub fn apply(&self, mut weights: Weights) -> Weights {
        let mut out = Weights::new();
        for (ours, theirs) in &self.names {
            let parts: Option<Vec<Tensor>> = theirs.iter().map(|name| weights.remove(name)).collect();
            if let Some(tensor) = parts.and_then(stack) {
                let tensor = if self.reordered.contains(ours) { fold(tensor) } else { tensor };
                out.insert(ours.clone(), tensor);
            }
        }
        out
    }

    /// Whether a parameter has another name, or other parts, in the file.
    #[must_use]
    pub fn renames(&self, ours: &str) -> bool {
        self.names.get(ours).is_some_and(|theirs| theirs.len() != 1 || theirs[0] != ours)
    }
}

/// Prefixes that may be a wrapper's: none, and those behind which most names stand.
fn wrappers(names: &[&str]) -> Vec<String> {
    let mut found = vec![String::new()];
    let mut prefix = String::new();
    for _ in 0..3 {
        let inner = names.iter().filter_map(|n| n.strip_prefix(&prefix));
        let next = WRAPPERS.into_iter().find(|w| {
            let with = inner.clone().filter(|n| n.starts_with(w)).count();
            2 * with > names.len()
        });
        let Some(next) = next else { break };
        prefix.push_str(next);
        found.push(prefix.clone());
    }
    found
}

/// Whether a block's name counts chunks before blocks, as DINOv2's training does: `blocks.0.11.norm1.weight`.
fn in_chunks(name: &str) -> bool {
    let mut parts = name.split('.');
    let number = |part: Option<&str>| part.is_some_and(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()));
    parts.next() == Some("blocks") && number(parts.next()) && number(parts.next())
}

fn without_chunk(name: &str) -> String {
    if !in_chunks(name) {
        return name.to_owned();
    }
    let rest: Vec<&str> = name.split('.').skip(2).collect();
    format!("blocks.{}", rest.join("."))
}

/// Our name for a name of a table, which of its parts it is, and by which rule.
fn place(rules: &'static [&'static [Rule]], name: &str) -> Option<(String, usize, &'static Rule)> {
    rules.iter().copied().flatten().find_map(|rule| {
        rule.theirs.iter().enumerate().find_map(|(at, theirs)| {
            let values = capture(theirs, name)?;
            Some((fill(rule.ours, &values), at, rule))
        })
    })
}

/// Tensors stacked along the first axis; none where their other axes differ.
fn stack(mut parts: Vec<Tensor>) -> Option<Tensor> {
    if parts.len() == 1 {
        return parts.pop();
    }
    let inner = parts.first()?.shape.get(1..)?.to_vec();
    if parts.iter().any(|p| p.shape.is_empty() || p.shape[1..] != inner) {
        return None;
    }
    let rows = parts.iter().map(|p| p.shape[0]).sum();
    let data = parts.into_iter().flat_map(|p| p.data).collect();
    Some(Tensor { shape: std::iter::once(rows).chain(inner).collect(), data })
}
