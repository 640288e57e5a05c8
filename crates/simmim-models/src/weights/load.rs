//! Weights of any origin as a whole: container, dialect, and what is known about the model.

use super::card::Card;
use super::dialect::Dialect;
use super::facts::{Facts, Structure, ratio};
use super::format::{Format, Stored};
use super::{METADATA_KEY, Translation, Weights};
use crate::classifier::{ClassifierConfig, Pool};
use crate::encoder::Encoder;
use crate::error::ModelError;
use crate::vit::{Position, PositionInit, VitConfig, WeightInit};
use std::path::{Path, PathBuf};

/// Weights under our names, with all that their file tells.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The file that was read.
    pub path: PathBuf,
    /// Its container.
    pub format: Format,
    /// How its names are read.
    pub translation: Translation,
    /// What the tensors say about the model.
    pub facts: Structure,
    /// What the files around them say.
    pub card: Card,
    /// What this program wrote into the file about itself.
    pub description: Option<String>,
    /// Name of the state dict that was taken, where the checkpoint holds it beside other things.
    pub taken: Option<String>,
    /// Whether that is an average of weights.
    pub average: bool,
    /// State dicts that were not taken.
    pub passed_over: Vec<String>,
    /// The weights.
    pub weights: Weights,
}

impl Loaded {
    /// Reads a file, an index of shards, or a folder with either.
    ///
    /// # Errors
    /// As [`Stored::open`]; [`ModelError::Format`] where the names are of no dialect, where a parameter lacks a part, where the
    /// description beside the file contradicts the tensors.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let stored = Stored::open(path)?;
        let wrong =
            |what: String, help: &str| ModelError::Format { path: stored.path.clone(), what, help: help.into() };
        let floats = stored.tensors().iter().filter(|(_, e)| e.element.is_float());
        let names: Vec<&str> = floats.map(|(name, _)| name.as_str()).collect();
        let translation = Translation::find(&names).ok_or_else(|| {
            let some = names.iter().take(4).copied().collect::<Vec<_>>().join(", ");
            wrong(
                format!("its names are of no dialect known here: {some}{}", if names.len() > 4 { ", ..." } else { "" }),
                "give weights of a vision transformer or a Swin transformer by microsoft/SimMIM, timm, Hugging Face, MAE, DINO, DINOv2 or mmpretrain",
            )
        })?;
        let incomplete = translation.incomplete();
        if !incomplete.is_empty() {
            let list = incomplete.iter().take(8).cloned().collect::<Vec<_>>().join(", ");
            return Err(wrong(format!("parts are missing of {list}"), "give the whole file"));
        }
        // What belongs to the encoder and is not known is read too, so that it is named where it does not fit.
        let odd: Vec<&str> = translation.odd().collect();
        let read = stored.read_all(translation.used().chain(odd.iter().copied()))?;
        let mut weights = translation.apply(read);
        for name in odd {
            weights.insert(
                name.to_owned(),
                super::Tensor { shape: stored.tensors()[name].shape.clone(), data: Vec::new() },
            );
        }
        let facts = Structure::of(&weights)
            .ok_or_else(|| wrong("it holds no whole transformer".into(), "give the whole file"))?;
        let card = Card::of(&stored)?;
        card.check(&facts, &stored.path)?;
        let loaded = Self {
            path: stored.path.clone(),
            format: stored.format,
            translation,
            facts,
            card,
            description: stored.metadata.get(METADATA_KEY).cloned(),
            average: stored.is_average(),
            taken: stored.taken.clone(),
            passed_over: stored.passed_over.clone(),
            weights,
        };
        match loaded.encoder() {
            Some(Encoder::Swin(swin)) if matches!(loaded.translation.dialect, Dialect::HfSwin | Dialect::HfSwinV2) => {
                match swin.differs_in_hugging_face() {
                    Some(why) => Err(wrong(
                        format!("Hugging Face computes something else at this size: {why}"),
                        "name the model by --model with its weights alone in a folder, or take a size that the windows divide",
                    )),
                    None => Ok(loaded),
                }
            }
            _ => Ok(loaded),
        }
    }

    /// Attention heads of a vision transformer: a table of biases or a description tells them.
    #[must_use]
    pub fn num_heads(&self) -> Option<usize> {
        let Structure::Vit(facts) = &self.facts else { return None };
        let named = || self.card.name.as_deref().and_then(|name| VitConfig::preset(name).ok());
        let named = || named().filter(|c| c.embed_dim == facts.embed_dim).map(|c| c.num_heads);
        facts.num_heads.or(self.card.num_heads).or_else(named)
    }

    /// Height and width of the images: described, or those of a square grid of positions.
    #[must_use]
    pub fn image_size(&self) -> Option<(usize, usize)> {
        match &self.facts {
            Structure::Vit(facts) => {
                let (rows, cols) = facts.patch_size;
                let described = self.card.image_size.filter(|(h, w)| h % rows == 0 && w % cols == 0);
                described.or_else(|| facts.grid().map(|(r, c)| (r * rows, c * cols)))
            }
            Structure::Swin(facts) => facts.image_size(&self.card),
        }
    }

    /// Rows and columns of patches that the positions were learned on.
    #[must_use]
    pub fn grid(&self) -> Option<(usize, usize)> {
        let of = |(rows, cols): (usize, usize)| move |(h, w): (usize, usize)| (h / rows, w / cols);
        match &self.facts {
            Structure::Vit(facts) => self.card.image_size.map(of(facts.patch_size)).or_else(|| facts.grid()),
            Structure::Swin(facts) => facts.image_size(&self.card).map(of(facts.patch_size)),
        }
    }

    /// The encoder that these weights are; none where heads, windows or the size of the images are not known.
    #[must_use]
    pub fn encoder(&self) -> Option<Encoder> {
        match &self.facts {
            Structure::Vit(facts) => self.vit(facts).map(Encoder::Vit),
            Structure::Swin(facts) => facts.config(&self.card).map(Encoder::Swin),
        }
    }

    /// The classifier that these weights are.
    ///
    /// # Errors
    /// [`ModelError::Format`] where there is no linear head, where the model is not known, or where the head reads what no classifier here
    /// gives it.
    pub fn classifier(&self) -> Result<ClassifierConfig, ModelError> {
        let wrong = |what: &str, help: &str| ModelError::Format {
            path: self.path.clone(),
            what: what.to_owned(),
            help: help.to_owned(),
        };
        const OTHER: &str =
            "fine-tune its encoder here (simmim finetune --weights), or evaluate it with the library that made it";
        let classes = self.facts.classes().ok_or_else(|| wrong("it holds no linear classifier", OTHER))?;
        let encoder = self
            .encoder()
            .ok_or_else(|| wrong("the file does not say which model it is", "put its config.json beside it"))?;
        let pooled_norm = matches!(&self.facts, Structure::Vit(f) if f.pooled_norm);
        let token = encoder.geometry().class_token && self.card.mean_pool != Some(true);
        let pool = match &encoder {
            Encoder::Swin(_) => Pool::Mean,
            Encoder::Vit(_) if pooled_norm => Pool::Mean,
            Encoder::Vit(_) if token => Pool::Cls,
            Encoder::Vit(_) => {
                return Err(wrong(
                    "it classifies the mean of normed tokens; here a mean is normed after pooling",
                    OTHER,
                ));
            }
        };
        let width = encoder.geometry().width;
        if self.weights.get("head.weight").is_some_and(|head| head.shape.get(1) != Some(&width)) {
            return Err(wrong(&format!("its head does not read one token of width {width}"), OTHER));
        }
        let mut config = ClassifierConfig::new(encoder, classes);
        config.pool = pool;
        Ok(config)
    }

    /// The parameters of [`Loaded::classifier`].
    #[must_use]
    pub fn classifier_weights(&self) -> Weights {
        let mut weights = self.weights.clone();
        weights.retain(|name, _| !super::hub::of_task(name));
        weights
    }

    fn vit(&self, f: &Facts) -> Option<VitConfig> {
        Some(VitConfig {
            image_size: self.image_size()?,
            patch_size: f.patch_size,
            channels: f.channels,
            embed_dim: f.embed_dim,
            depth: f.depth,
            num_heads: self.num_heads()?,
            mlp_ratio: ratio(f.mlp_dim, f.embed_dim),
            class_token: f.class_token,
            registers: f.registers,
            position: f.position,
            position_init: PositionInit::Normal,
            weight_init: WeightInit::Normal,
            layer_scale: f.layer_scale.map(|v| if v == 0.0 { 1e-5 } else { v }),
            drop_path: 0.0,
            qkv_bias: f.qkv_bias,
            final_norm: f.final_norm || f.pooled_norm,
            eps: self.card.eps.unwrap_or(1e-6) as f32,
        })
    }
}

impl Card {
    /// Refuses a description that speaks of another model than the tensors.
    fn check(&self, facts: &Structure, path: &Path) -> Result<(), ModelError> {
        let differs = match facts {
            Structure::Vit(facts) => self.differs_from_vit(facts),
            Structure::Swin(facts) => facts.contradiction(self),
        };
        match (differs, &self.source) {
            (Some(what), Some(source)) => Err(ModelError::Format {
                path: path.to_owned(),
                what: format!("{} contradicts the tensors: it says {what}", source.display()),
                help: "put the description that belongs to the weights beside them, or move them away from it".into(),
            }),
            _ => Ok(()),
        }
    }

    fn differs_from_vit(&self, facts: &Facts) -> Option<String> {
        let grid = |(h, w): (usize, usize)| (h / facts.patch_size.0).saturating_mul(w / facts.patch_size.1);
        let prefixes = [0, 1, usize::from(facts.class_token).saturating_add(facts.registers)];
        let places = |patches: usize| {
            facts.places.is_none_or(|n| prefixes.iter().any(|extra| patches.saturating_add(*extra) == n))
        };
        let absolute = facts.position == Position::Absolute;
        let contradictions = [
            ("width", self.embed_dim, Some(facts.embed_dim)),
            ("number of blocks", self.depth, Some(facts.depth)),
            ("width of the MLP", self.mlp_dim, Some(facts.mlp_dim)),
            ("height of a patch", self.patch_size.map(|p| p.0), Some(facts.patch_size.0)),
            ("width of a patch", self.patch_size.map(|p| p.1), Some(facts.patch_size.1)),
            ("number of channels", self.channels, Some(facts.channels)),
            ("number of heads", self.num_heads, facts.num_heads.or(self.num_heads)),
        ];
        let differ = contradictions.into_iter().find_map(|(what, said, is)| {
            let (said, is) = (said?, is?);
            (said != is).then(|| format!("{what} {said}, the tensors {is}"))
        });
        let size = self.image_size.filter(|&size| absolute && !places(grid(size)));
        let size = size.map(|(h, w)| format!("images of {h}x{w}, the tensors {} positions", facts.places.unwrap_or(0)));
        differ.or(size)
    }
}
