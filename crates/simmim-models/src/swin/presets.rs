//! timm's names.

use super::{SwinConfig, Version};
use crate::error::ModelError;

/// Name, width, blocks and heads of each stage (Liu et al., arXiv 2103.14030, table 7).
const SIZES: [(&str, usize, [usize; 4], [usize; 4]); 4] = [
    ("tiny", 96, [2, 2, 6, 2], [3, 6, 12, 24]),
    ("small", 96, [2, 2, 18, 2], [3, 6, 12, 24]),
    ("base", 128, [2, 2, 18, 2], [4, 8, 16, 32]),
    ("large", 192, [2, 2, 18, 2], [6, 12, 24, 48]),
];

pub(super) fn parse(name: &str) -> Result<SwinConfig, ModelError> {
    let unknown = || ModelError::UnknownModel { name: name.to_owned(), nearest: nearest(name).join(", ") };
    let (version, rest) = match (name.strip_prefix("swin_"), name.strip_prefix("swinv2_")) {
        (Some(rest), _) => (Version::V1, rest),
        (None, Some(rest)) => (Version::V2, rest),
        (None, None) => return Err(unknown()),
    };
    let mut parts = rest.split('_');
    let size = parts.next();
    let &(_, embed_dim, depths, num_heads) =
        SIZES.iter().find(|(known, ..)| Some(*known) == size).ok_or_else(unknown)?;
    if version == Version::V1 && parts.next() != Some("patch4") {
        return Err(unknown());
    }
    let number = |text: Option<&str>| text.and_then(|t| t.parse::<usize>().ok()).filter(|&n| n > 0);
    // A model that went on with larger windows and images has both in its name: `window12to16_192to256`.
    let change = |text: Option<&str>| {
        let (before, now) = match text?.split_once("to").filter(|_| version == Version::V2) {
            Some((before, now)) => (Some(number(Some(before))?), now),
            None => (None, text?),
        };
        Some((before, number(Some(now))?))
    };
    let (window_before, window) = change(parts.next().and_then(|p| p.strip_prefix("window"))).ok_or_else(unknown)?;
    let (image_before, image) = change(parts.next()).ok_or_else(unknown)?;
    if parts.next().is_some() || window_before.is_some() != image_before.is_some() {
        return Err(unknown());
    }
    let mut config = SwinConfig {
        version,
        image_size: (image, image),
        patch_size: (4, 4),
        channels: 3,
        embed_dim,
        depths: depths.to_vec(),
        num_heads: num_heads.to_vec(),
        window_size: window,
        pretrained_windows: Vec::new(),
        mlp_ratio: 4.0,
        absolute: false,
        drop_path: 0.0,
        qkv_bias: true,
        final_norm: true,
        eps: 1e-5,
    };
    if let (Some(window), Some(image)) = (window_before, image_before) {
        let before = SwinConfig { image_size: (image, image), window_size: window, ..config.clone() };
        config.pretrained_windows = before.stages().iter().map(|s| s.window.0).collect();
    }
    config.validate()?;
    Ok(config)
}

/// Names like the one asked for, best first.
pub(crate) fn nearest(name: &str) -> Vec<String> {
    let forms = |size: &str| {
        [(7, 224), (6, 192), (12, 192), (8, 256)]
            .into_iter()
            .flat_map(move |(window, image)| {
                [format!("swin_{size}_patch4_window{window}_{image}"), format!("swinv2_{size}_window{window}_{image}")]
            })
            .collect::<Vec<_>>()
    };
    let mut known: Vec<String> = SIZES.iter().flat_map(|(size, ..)| forms(size)).collect();
    known.sort_by_key(|k| (crate::vit::distance(k, name), k.clone()));
    known.truncate(3);
    known
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_give_timms_sizes() {
        let b = parse("swin_base_patch4_window6_192").unwrap();
        assert_eq!((b.embed_dim, b.depths, b.num_heads), (128, vec![2, 2, 18, 2], vec![4, 8, 16, 32]));
        assert_eq!((b.window_size, b.image_size, b.version), (6, (192, 192), Version::V1));
        let l = parse("swinv2_large_window12_192").unwrap();
        assert_eq!((l.embed_dim, l.window_size, l.version), (192, 12, Version::V2));
        let larger = parse("swinv2_base_window12to16_192to256").unwrap();
        assert_eq!(
            (larger.window_size, larger.image_size.0, larger.pretrained_windows),
            (16, 256, vec![12, 12, 12, 6])
        );
    }

    #[test]
    fn unknown_names_are_answered_with_known_ones() {
        for bad in [
            "swin_tiny",
            "swin_huge_patch4_window7_224",
            "swin_tiny_patch8_window7_224",
            "swinv2_tiny_patch4_window8_256",
            "swinv2_tiny_window8to16_256",
            "swin_tiny_patch4_window7to14_224to448",
        ] {
            assert!(matches!(parse(bad).unwrap_err(), ModelError::UnknownModel { .. }), "{bad}");
        }
        let help = parse("swin_tinny_patch4_window7_224").unwrap_err().help().unwrap();
        assert!(help.contains("swin_tiny_patch4_window7_224"), "{help}");
        assert!(parse("swin_tiny_patch4_window7_225").unwrap_err().to_string().contains("halved"));
    }
}
