//! Parameters of a vision transformer, in the order of its layers.

use super::relative::table_entries;
use super::{Position, QkvBias, VitConfig, WeightInit};
use crate::parameters::{Init, ParameterSpec};

/// Whose initial values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InitStyle {
    /// timm's: normal of .02 for products, PyTorch's default for the patch projection.
    Timm,
    /// The official SimMIM code's: everything normal of .02 cut at one standard deviation, the last products of both branches
    /// divided by `sqrt(2 layer)`.
    Official,
}

const STD: f32 = 0.02;

impl InitStyle {
    /// The start of a matrix `[out, in]`; `depth_scale` is the official style's factor for the last products of a branch.
    fn weight(self, c: &VitConfig, [out, inside]: [usize; 2], depth_scale: f32) -> Init {
        match (c.weight_init, self) {
            (WeightInit::Xavier, _) => Init::Uniform { bound: (6.0 / (out + inside) as f32).sqrt() },
            (WeightInit::Normal, Self::Timm) => Self::Timm.normal(1.0),
            (WeightInit::Normal, Self::Official) => Self::Official.normal(depth_scale),
        }
    }

    fn normal(self, scale: f32) -> Init {
        match self {
            // timm cuts at +-2 in absolute terms, a hundred standard deviations away.
            Self::Timm => Init::TruncatedNormal { std: STD, cut: 2.0, scale: 1.0 },
            Self::Official => Init::TruncatedNormal { std: STD, cut: STD, scale },
        }
    }

    /// Weight and bias of the patch projection.
    fn patch_projection(self, c: &VitConfig) -> (Init, Init) {
        let shape = [c.embed_dim, c.patch_values()];
        match (c.weight_init, self) {
            (WeightInit::Normal, Self::Timm) => {
                let uniform = Init::Uniform { bound: 1.0 / (c.patch_values() as f32).sqrt() };
                (uniform, uniform)
            }
            _ => (self.weight(c, shape, 1.0), Init::Constant(0.0)),
        }
    }

    fn class_token(self) -> Init {
        match self {
            Self::Timm => Init::Normal { std: 1e-6 },
            Self::Official => self.normal(1.0),
        }
    }
}

/// The parameters, with names behind `prefix`.
pub(crate) fn specs(c: &VitConfig, prefix: &str, style: InitStyle) -> Vec<ParameterSpec> {
    let dim = c.embed_dim;
    let mut list = Vec::new();
    let spec = |name: &str, shape: &[usize], init: Init| ParameterSpec::new(format!("{prefix}{name}"), shape, init);
    if c.class_token {
        list.push(spec("cls_token", &[1, 1, dim], style.class_token()).in_layer(0));
    }
    if c.registers > 0 {
        list.push(spec("reg_token", &[1, c.registers, dim], style.class_token()).in_layer(0));
    }
    if c.position == Position::Absolute {
        let (rows, cols) = c.grid();
        let table = Init::SinCos { rows, cols, class_token: c.class_token };
        let init = if c.starts_as_sincos() { table } else { style.normal(1.0) };
        list.push(spec("pos_embed", &[1, c.positions(), dim], init).in_layer(0));
    }
    let (weight, bias) = style.patch_projection(c);
    let kernel = [dim, c.channels, c.patch_size.0, c.patch_size.1];
    list.push(spec("patch_embed.proj.weight", &kernel, weight).in_layer(0));
    list.push(spec("patch_embed.proj.bias", &[dim], bias).in_layer(0));
    let entries = table_entries(c.grid().0, c.grid().1, c.class_token);
    if c.position == Position::SharedRelative {
        let name = "rel_pos_bias.relative_position_bias_table";
        list.push(spec(name, &[entries, c.num_heads], Init::Constant(0.0)));
    }
    for block in 0..c.depth {
        block_specs(c, block, entries, style, &mut |name, shape, init| {
            list.push(spec(name, shape, init).in_layer(block + 1));
        });
    }
    if c.final_norm {
        list.push(spec("norm.weight", &[dim], Init::Constant(1.0)));
        list.push(spec("norm.bias", &[dim], Init::Constant(0.0)));
    }
    list
}

fn block_specs(
    c: &VitConfig,
    block: usize,
    entries: usize,
    style: InitStyle,
    add: &mut impl FnMut(&str, &[usize], Init),
) {
    let (dim, mlp) = (c.embed_dim, c.mlp_dim());
    let depth_scale = 1.0 / (2.0 * (block as f32 + 1.0)).sqrt();
    let (zero, one) = (Init::Constant(0.0), Init::Constant(1.0));
    let mut add = |name: &str, shape: &[usize], init: Init| add(&format!("blocks.{block}.{name}"), shape, init);
    if let Some(value) = c.layer_scale {
        add("gamma_1", &[dim], Init::Constant(value));
        add("gamma_2", &[dim], Init::Constant(value));
    }
    add("norm1.weight", &[dim], one);
    add("norm1.bias", &[dim], zero);
    add("attn.qkv.weight", &[3 * dim, dim], style.weight(c, [3 * dim, dim], 1.0));
    match c.qkv_bias {
        QkvBias::Full => add("attn.qkv.bias", &[3 * dim], zero),
        QkvBias::NoKey => {
            add("attn.q_bias", &[dim], zero);
            add("attn.v_bias", &[dim], zero);
        }
        QkvBias::None => {}
    }
    if c.position == Position::Relative {
        add("attn.relative_position_bias_table", &[entries, c.num_heads], zero);
    }
    add("attn.proj.weight", &[dim, dim], style.weight(c, [dim, dim], depth_scale));
    add("attn.proj.bias", &[dim], zero);
    add("norm2.weight", &[dim], one);
    add("norm2.bias", &[dim], zero);
    add("mlp.fc1.weight", &[mlp, dim], style.weight(c, [mlp, dim], 1.0));
    add("mlp.fc1.bias", &[mlp], zero);
    add("mlp.fc2.weight", &[dim, mlp], style.weight(c, [dim, mlp], depth_scale));
    add("mlp.fc2.bias", &[dim], zero);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// PyTorch's `xavier_uniform_` draws from +-sqrt(6 / (in + out)).
    #[test]
    fn xavier_follows_the_sizes_of_every_matrix_and_leaves_the_rest() {
        let c = VitConfig::preset("vit_tiny_patch8_32").unwrap();
        let xavier = VitConfig { weight_init: WeightInit::Xavier, ..c.clone() };
        for style in [InitStyle::Timm, InitStyle::Official] {
            for (plain, changed) in specs(&c, "", style).into_iter().zip(specs(&xavier, "", style)) {
                let (out, inside) = (changed.shape[0], changed.shape[1..].iter().product::<usize>());
                if changed.name.ends_with(".weight") && changed.shape.len() > 1 {
                    let bound = (6.0 / (out + inside) as f32).sqrt();
                    assert_eq!(changed.init, Init::Uniform { bound }, "{}", changed.name);
                    let values = changed.initial(1);
                    assert!(values.iter().all(|v| v.abs() <= bound) && values.iter().any(|v| v.abs() > 0.9 * bound));
                } else if changed.name == "patch_embed.proj.bias" {
                    assert_eq!(changed.init, Init::Constant(0.0));
                } else {
                    assert_eq!(changed, plain);
                }
            }
        }
    }
}
