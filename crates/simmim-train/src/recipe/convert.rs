//! From a recipe to the configurations of models, data and the loop.

use super::{
    AreaKind, Augment, CacheKind, FineTune, HeadKind, InterpolationKind, LossName, MaskKind, ModeKind, PoolKind,
    Recipe, ScheduleKind, Statistic, TargetKind, wrong,
};
use crate::error::TrainError;
use crate::schedule::{Decay, LearningRate};
use simmim_data::policy::Filter;
use simmim_data::{
    CacheConfig, IMAGENET_MEAN, IMAGENET_STD, Interpolation, MaskSpec, Mix, Policy, RandAugment, RandomResizedCrop,
    Reading, Source, Transform,
};
use simmim_models::optimizer::AdamWConfig;
use simmim_models::{
    Area, ClassifierConfig, Encoder, Head, Loss, Mode, ModelError, Pool, Position, SimMimConfig, Target,
};

/// Images that `"measure"` computes mean and standard deviation from.
const MEASURED: usize = 4096;

pub(super) fn pair(v: [usize; 2]) -> (usize, usize) {
    (v[0], v[1])
}

impl Recipe {
    /// The model and its task.
    ///
    /// # Errors
    /// [`ModelError::Geometry`] for sizes that do not fit.
    pub fn simmim_config(&self) -> Result<SimMimConfig, ModelError> {
        let s = &self.simmim;
        let config = SimMimConfig {
            encoder: self.encoder_config(),
            mode: if s.mode == ModeKind::Tutorial { Mode::Tutorial } else { Mode::Official },
            mask_patch: pair(s.mask_patch),
            mask_ratio: s.mask_ratio,
            target: match s.target {
                TargetKind::Pixels => Target::Pixels,
                TargetKind::Normalized => Target::Normalized,
                TargetKind::WindowNormalized => Target::WindowNormalized { window: s.target_window },
            },
            loss: match s.loss {
                LossName::L1 => Loss::L1,
                LossName::L2 => Loss::L2,
                LossName::SmoothL1 => Loss::SmoothL1,
            },
            area: if s.area == AreaKind::Masked { Area::Masked } else { Area::Full },
            head: if s.head == HeadKind::Linear { Head::Linear } else { Head::Mlp },
        };
        config.validate()?;
        Ok(config)
    }

    /// The encoder. Whether its sizes fit is for the caller to check.
    #[must_use]
    pub fn encoder_config(&self) -> Encoder {
        self.model.encoder()
    }

    /// The sections of fine-tuning.
    ///
    /// # Errors
    /// [`TrainError::Recipe`] where the recipe is one for pre-training.
    pub fn finetuning(&self) -> Result<(&FineTune, &Augment), TrainError> {
        match (&self.finetune, &self.augment) {
            (Some(finetune), Some(augment)) => Ok((finetune, augment)),
            _ => Err(wrong(
                &self.model.name,
                "this is a recipe for pre-training",
                "choose one with a [finetune] section, such as --recipe finetune_small_images",
            )),
        }
    }

    /// Whether a pre-training can follow this recipe.
    ///
    /// # Errors
    /// [`TrainError::Recipe`] where it is one for fine-tuning, or gives no length.
    pub fn for_pretraining(&self) -> Result<(), TrainError> {
        if self.finetune.is_some() {
            return Err(wrong(
                &self.model.name,
                "this is a recipe for fine-tuning",
                "use it with simmim finetune, or choose another recipe",
            ));
        }
        self.has_length()
    }

    /// Whether a fine-tuning can follow this recipe.
    ///
    /// # Errors
    /// [`TrainError::Recipe`] where it is one for pre-training, or gives no length.
    pub fn for_finetuning(&self) -> Result<(), TrainError> {
        self.finetuning()?;
        self.has_length()
    }

    fn has_length(&self) -> Result<(), TrainError> {
        match (self.schedule.epochs, self.schedule.steps) {
            (0, 0) => Err(wrong(
                "schedule",
                "the recipe does not say how long to train",
                "give --steps or --epochs, or set schedule.steps or schedule.epochs",
            )),
            _ => Ok(()),
        }
    }

    /// The classifier for a number of classes.
    ///
    /// # Errors
    /// [`TrainError::Recipe`] for a recipe for pre-training, [`ModelError::Geometry`] for sizes that do not fit.
    pub fn classifier_config(&self, classes: usize) -> Result<ClassifierConfig, TrainError> {
        let f = self.finetuning()?.0;
        let mut encoder = self.encoder_config();
        if let Encoder::Vit(vit) = &mut encoder
            && f.per_block_bias
            && vit.position == Position::SharedRelative
        {
            vit.position = Position::Relative;
        }
        let config = ClassifierConfig {
            encoder,
            classes,
            pool: if f.pool == PoolKind::Mean { Pool::Mean } else { Pool::Cls },
            head_scale: f.head_scale as f32,
            layer_decay: f.layer_decay,
            freeze: f.freeze,
        };
        config.validate()?;
        Ok(config)
    }

    /// Mixup, CutMix and label smoothing; none in pre-training.
    #[must_use]
    pub fn mix(&self) -> Mix {
        self.augment.as_ref().map_or(Mix::NONE, |a| Mix {
            mixup: a.mixup,
            cutmix: a.cutmix,
            probability: a.mix_probability,
            switch: a.mix_switch,
            smoothing: a.label_smoothing,
        })
    }

    fn policy(&self) -> Option<Policy> {
        let bicubic = self.data.interpolation == InterpolationKind::Bicubic;
        self.augment.as_ref().map(|a| Policy {
            rand_augment: (a.rand_layers > 0).then_some(RandAugment {
                layers: a.rand_layers,
                magnitude: a.rand_magnitude,
                std: a.rand_std,
            }),
            color_jitter: a.color_jitter,
            erase: a.erase,
            filter: if bicubic { Filter::Bicubic } else { Filter::Bilinear },
        })
    }

    /// How image files are read, and where decoded pixels are cached.
    #[must_use]
    pub fn reading(&self) -> (Reading, CacheConfig) {
        let d = &self.data;
        let kind = match d.cache {
            CacheKind::None => simmim_data::CacheKind::None,
            CacheKind::Memory => simmim_data::CacheKind::Memory,
            CacheKind::Disk => simmim_data::CacheKind::Disk,
        };
        let cache = CacheConfig { kind, size: d.cache_size, limit: d.cache_limit, path: d.cache_path.clone().into() };
        (Reading { scaled_decoding: d.scaled_decoding }, cache)
    }

    /// The masks.
    #[must_use]
    pub fn mask_spec(&self, config: &SimMimConfig) -> MaskSpec {
        let (rows, cols) = config.mask_grid();
        let kind = match (self.simmim.mask_kind, self.simmim.mode) {
            (MaskKind::Block, _) => simmim_data::MaskKind::Block,
            (MaskKind::Random, ModeKind::Tutorial) => simmim_data::MaskKind::TutorialTokens,
            (MaskKind::Random, ModeKind::Official) => simmim_data::MaskKind::Random,
        };
        MaskSpec { rows, cols, ratio: self.simmim.mask_ratio, kind }
    }

    /// Replaces `"imagenet"` and `"measure"` with numbers.
    ///
    /// # Errors
    /// Images that cannot be read, a list of the wrong length.
    pub fn fix_statistics(&mut self, source: &dyn Source) -> Result<(), TrainError> {
        let channels = self.model.channels;
        let measured = if [&self.data.mean, &self.data.std].contains(&&Statistic::Named("measure".into())) {
            Some(simmim_data::mean_std(source, self.transform().wanted(), MEASURED)?)
        } else {
            None
        };
        let fix = |key: &str, s: &Statistic, imagenet: [f32; 3], measured: Option<&Vec<f32>>| match s {
            Statistic::Given(v) if v.len() == channels => Ok(v.clone()),
            Statistic::Given(v) => {
                Err(wrong(key, format!("{} numbers for {channels} channels", v.len()), "use one number per channel"))
            }
            Statistic::Named(name) => match (name.as_str(), measured) {
                ("measure", Some(v)) => Ok(v.clone()),
                ("imagenet", _) if channels == 3 => Ok(imagenet.to_vec()),
                ("imagenet", _) if channels == 1 => Ok(vec![imagenet.iter().sum::<f32>() / 3.0]),
                ("imagenet", _) => {
                    Err(wrong(key, "\"imagenet\" is for images of one or three channels", "use \"measure\""))
                }
                _ => Err(wrong(
                    key,
                    format!("unknown value `{name}`"),
                    "use \"imagenet\", \"measure\" or one number per channel",
                )),
            },
        };
        let mean = fix("data.mean", &self.data.mean, IMAGENET_MEAN, measured.as_ref().map(|m| &m.0))?;
        let std = fix("data.std", &self.data.std, IMAGENET_STD, measured.as_ref().map(|m| &m.1))?;
        (self.data.mean, self.data.std) = (Statistic::Given(mean), Statistic::Given(std));
        Ok(())
    }

    /// Mean and standard deviation, once they are numbers.
    #[must_use]
    pub fn statistics(&self) -> (Vec<f32>, Vec<f32>) {
        let numbers = |s: &Statistic, or: f32| match s {
            Statistic::Given(v) => v.clone(),
            Statistic::Named(_) => vec![or; self.model.channels],
        };
        (numbers(&self.data.mean, 0.0), numbers(&self.data.std, 1.0))
    }

    /// The transform of images, once mean and standard deviation are numbers.
    #[must_use]
    pub fn transform(&self) -> Transform {
        let d = &self.data;
        let mut transform = Transform::new((self.model.image_size[0], self.model.image_size[1]), self.model.channels);
        let crop =
            RandomResizedCrop { scale: (d.crop_scale[0], d.crop_scale[1]), ratio: (d.crop_ratio[0], d.crop_ratio[1]) };
        transform.crop = d.random_crop.then_some(crop);
        transform.flip = d.flip;
        // A recipe that was read has a valid one.
        transform.background = d.background.parse().unwrap_or_default();
        transform.interpolation = if d.interpolation == InterpolationKind::Bilinear {
            Interpolation::Bilinear
        } else {
            Interpolation::Bicubic
        };
        (transform.mean, transform.std) = self.statistics();
        transform.policy = self.policy();
        transform.keep = self.finetune.as_ref().map_or(1.0, |f| f.eval_crop);
        transform
    }

    /// The optimiser.
    #[must_use]
    pub fn adamw(&self) -> AdamWConfig {
        let o = &self.optimizer;
        AdamWConfig {
            betas: (o.betas[0] as f32, o.betas[1] as f32),
            eps: o.eps as f32,
            weight_decay: o.weight_decay as f32,
            clip_norm: (o.clip_norm > 0.0).then_some(o.clip_norm as f32),
        }
    }

    /// The learning-rate schedule, for epochs of `steps_per_epoch` steps.
    #[must_use]
    pub fn learning_rate(&self, steps_per_epoch: u64) -> LearningRate {
        let (s, o) = (&self.schedule, &self.optimizer);
        let factor = if o.scale_lr { self.train.batch_size as f64 / 512.0 } else { 1.0 };
        let steps = |epochs: f64| (epochs * steps_per_epoch as f64).round() as u64;
        // A length in steps may be far shorter than the epochs the recipe was written for.
        let longest = if s.steps > 0 { s.steps / 5 } else { u64::MAX };
        LearningRate {
            lr: o.lr * factor,
            warmup_lr: s.warmup_lr * factor,
            min_lr: s.min_lr * factor,
            warmup_steps: if s.warmup_steps > 0 { s.warmup_steps } else { steps(s.warmup_epochs).min(longest) },
            total_steps: self.total_steps(steps_per_epoch),
            decay: match s.kind {
                ScheduleKind::Cosine => Decay::Cosine { after_warmup: s.warmup_prefix },
                ScheduleKind::Linear => Decay::Linear,
                ScheduleKind::Constant => Decay::Constant,
                ScheduleKind::MultiStep => {
                    Decay::MultiStep { milestones: s.milestones.iter().map(|&e| steps(e)).collect(), gamma: s.gamma }
                }
            },
        }
    }

    /// Length of training in steps.
    #[must_use]
    pub fn total_steps(&self, steps_per_epoch: u64) -> u64 {
        if self.schedule.steps > 0 { self.schedule.steps } else { self.schedule.epochs.saturating_mul(steps_per_epoch) }
    }
}
