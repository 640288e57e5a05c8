//! timm's names.

use super::{Position, PositionInit, QkvBias, VitConfig, WeightInit};
use crate::error::ModelError;

/// Name, width, blocks, heads (Dosovitskiy et al., arXiv 2010.11929, table 1; Touvron et al., arXiv 2012.12877, table 1).
const SIZES: [(&str, usize, usize, usize); 4] =
    [("tiny", 192, 12, 3), ("small", 384, 12, 6), ("base", 768, 12, 12), ("large", 1024, 24, 16)];
const PATCHES: [usize; 5] = [4, 8, 14, 16, 32];

/// timm's other sizes with registers and without class token: name, width, blocks, heads, MLP ratio. They have LayerScale.
const WITH_REGISTERS: [(&str, usize, usize, usize, f64); 5] = [
    ("wee", 256, 14, 4, 5.0),
    ("little", 320, 14, 5, 5.6),
    ("medium", 512, 12, 8, 4.0),
    ("mediumd", 512, 20, 8, 4.0),
    ("betwixt", 640, 12, 10, 4.0),
];

/// Where LayerScale starts in timm's models.
const LAYER_SCALE: f32 = 1e-5;

/// Side of the images of DINOv2.
const DINOV2_IMAGE: usize = 518;

fn number(text: Option<&str>) -> Option<usize> {
    text.and_then(|t| t.parse().ok()).filter(|&n| n > 0)
}

/// What stands behind size and patch: the images' side alone (`224`), DINOv2 with registers or without (`reg4_dinov2`, `dinov2`), or
/// registers in place of a class token (`reg4_gap_256`).
pub(super) fn parse(name: &str) -> Result<VitConfig, ModelError> {
    let unknown = || ModelError::UnknownModel { name: name.to_owned(), nearest: nearest(name) };
    let mut parts = name.strip_prefix("vit_").ok_or_else(unknown)?.split('_');
    let (size, patch) = (parts.next().ok_or_else(unknown)?, parts.next());
    let patch =
        number(patch.and_then(|p| p.strip_prefix("patch"))).filter(|p| PATCHES.contains(p)).ok_or_else(unknown)?;
    let rest: Vec<&str> = parts.collect();
    let registers = number(rest.first().and_then(|r| r.strip_prefix("reg")));
    let dinov2 = rest.last() == Some(&"dinov2");
    if dinov2 && size == "giant" {
        return Err(ModelError::geometry(
            format!("{name} has a gated MLP (SwiGLU), which this program does not have"),
            "take a smaller one, such as vit_large_patch14_dinov2",
        ));
    }
    let (class_token, registers, image) = match (&rest[..], registers) {
        ([image], None) if !dinov2 => (true, 0, number(Some(*image))),
        ([_], None) => (true, 0, Some(DINOV2_IMAGE)),
        ([_, _], Some(count)) if dinov2 => (true, count, Some(DINOV2_IMAGE)),
        ([_, "gap", image], Some(count)) => (false, count, number(Some(*image))),
        _ => return Err(unknown()),
    };
    let plain = SIZES.iter().find(|(known, ..)| *known == size).map(|&(_, dim, depth, heads)| (dim, depth, heads, 4.0));
    let other = || WITH_REGISTERS.iter().find(|(known, ..)| !class_token && *known == size);
    let (embed_dim, depth, num_heads, mlp_ratio) =
        plain.or_else(|| other().map(|&(_, dim, depth, heads, mlp)| (dim, depth, heads, mlp))).ok_or_else(unknown)?;
    let image = image.ok_or_else(unknown)?;
    let config = VitConfig {
        image_size: (image, image),
        patch_size: (patch, patch),
        channels: 3,
        embed_dim,
        depth,
        num_heads,
        mlp_ratio,
        class_token,
        registers,
        position: Position::Absolute,
        position_init: PositionInit::Normal,
        weight_init: WeightInit::Normal,
        layer_scale: (dinov2 || plain.is_none()).then_some(LAYER_SCALE),
        drop_path: 0.0,
        qkv_bias: QkvBias::Full,
        final_norm: true,
        eps: 1e-6,
    };
    config.validate()?;
    Ok(config)
}

/// The three names that share most with the one asked for.
fn nearest(name: &str) -> String {
    let mut known: Vec<String> =
        SIZES.iter().flat_map(|(size, ..)| PATCHES.iter().map(move |p| format!("vit_{size}_patch{p}_224"))).collect();
    for (size, ..) in &SIZES[1..] {
        known.extend([format!("vit_{size}_patch14_dinov2"), format!("vit_{size}_patch14_reg4_dinov2")]);
    }
    let gap = WITH_REGISTERS.iter().map(|(size, ..)| *size).chain(["base"]);
    known.extend(gap.map(|size| format!("vit_{size}_patch16_reg4_gap_256")));
    known.sort_by_key(|k| (distance(k, name), k.clone()));
    known.truncate(3);
    known.join(", ")
}

/// Levenshtein distance.
pub(crate) fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &cb) in b.iter().enumerate() {
            let change = diagonal + usize::from(ca != cb);
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_give_timms_sizes() {
        let s = parse("vit_small_patch32_224").unwrap();
        assert_eq!((s.embed_dim, s.depth, s.num_heads, s.patch_size, s.tokens()), (384, 12, 6, (32, 32), 50));
        assert_eq!(parse("vit_large_patch14_518").unwrap().grid(), (37, 37));
        assert_eq!(parse("vit_tiny_patch4_28").unwrap().patches(), 49);
        let d = parse("vit_small_patch14_reg4_dinov2").unwrap();
        assert_eq!((d.image_size, d.class_token, d.registers, d.layer_scale), ((518, 518), true, 4, Some(1e-5)));
        let d = parse("vit_large_patch14_dinov2").unwrap();
        assert_eq!((d.embed_dim, d.registers, d.layer_scale), (1024, 0, Some(1e-5)));
        let g = parse("vit_base_patch16_reg4_gap_256").unwrap();
        assert_eq!((g.embed_dim, g.class_token, g.registers, g.layer_scale), (768, false, 4, None));
        let g = parse("vit_mediumd_patch16_reg4_gap_384").unwrap();
        assert_eq!((g.embed_dim, g.depth, g.num_heads, g.layer_scale), (512, 20, 8, Some(1e-5)));
        let giant = parse("vit_giant_patch14_reg4_dinov2").unwrap_err().to_string();
        assert!(giant.contains("SwiGLU"), "{giant}");
    }

    #[test]
    fn unknown_names_are_answered_with_known_ones() {
        for bad in [
            "vit_smal_patch32_224",
            "resnet50",
            "vit_small_patch32_224_in21k",
            "vit_small_patch7_224",
            "vit_",
            "vit_medium_patch16_224",
            "vit_base_patch16_reg4_map_256",
            "vit_base_patch14_reg_dinov2",
        ] {
            let error = parse(bad).unwrap_err();
            assert!(matches!(error, ModelError::UnknownModel { .. }), "{bad}: {error}");
        }
        assert!(parse("vit_smal_patch32_224").unwrap_err().help().unwrap().contains("vit_small_patch32_224"));
        assert!(parse("vit_base_patch16_100").unwrap_err().to_string().contains("do not divide"));
    }
}
