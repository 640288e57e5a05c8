//! Which values a recipe may hold. Whether sizes fit each other is for the model to say (`SimMimConfig::validate`).

use super::{Heads, MaskKind, ModeKind, Recipe, Statistic, wrong};
use crate::error::TrainError;
use simmim_data::Background;
use std::fmt::Debug;

/// Complains about values of one recipe.
struct Check<'a>(&'a str);

impl Check<'_> {
    fn that(&self, good: bool, key: &str, found: impl Debug, help: &str) -> Result<(), TrainError> {
        if good { Ok(()) } else { Err(wrong(self.0, format!("{key} is {found:?}"), help)) }
    }

    fn not_negative(&self, key: &str, value: f64) -> Result<(), TrainError> {
        self.that(value.is_finite() && value >= 0.0, key, value, "use a number that is not negative")
    }

    fn within(&self, key: &str, value: usize, from: usize, to: usize) -> Result<(), TrainError> {
        self.that((from..=to).contains(&value), key, value, &format!("use a number from {from} to {to}"))
    }

    /// Two positive numbers, the smaller one first.
    fn range(&self, key: &str, [low, high]: [f64; 2], most: f64) -> Result<(), TrainError> {
        let good = low > 0.0 && low <= high && high <= most;
        self.that(good, key, [low, high], &format!("use two numbers above 0 and up to {most}, the smaller one first"))
    }
}

impl Recipe {
    pub(super) fn validate(&self, origin: &str) -> Result<(), TrainError> {
        let check = Check(origin);
        self.validate_sizes(&check)?;
        self.validate_task(&check)?;
        self.validate_data(&check)?;
        self.validate_optimizer(&check)?;
        self.validate_schedule(&check)?;
        for every in [("validate.images", self.validate.images), ("reconstruct.images", self.reconstruct.images)] {
            check.within(every.0, every.1, 1, 1_000_000)?;
        }
        check.within("probe.images", self.probe.images, 2, 1_000_000)?;
        check.that(
            self.probe.train_path.is_empty() == self.probe.val_path.is_empty(),
            "probe",
            (&self.probe.train_path, &self.probe.val_path),
            "set both probe.train_path and probe.val_path, or neither",
        )?;
        check.that(self.log.every_steps > 0, "log.every_steps", 0, "use a positive number of steps")?;
        check.within("checkpoint.keep", self.checkpoint.keep, 1, 1_000_000)?;
        check.not_negative("guard.spike_factor", self.guard.spike_factor)?;
        check.within("guard.spike_window", self.guard.spike_window, 1, 100_000)?;
        self.validate_finetuning(&check)
    }

    fn validate_finetuning(&self, check: &Check<'_>) -> Result<(), TrainError> {
        let (Some(f), Some(a)) = (&self.finetune, &self.augment) else { return Ok(()) };
        let share = |key: &str, v: f64| check.that((0.0..=1.0).contains(&v), key, v, "use a number from 0 to 1");
        let positive = |key: &str, v: f64, most: f64, help: &str| check.that(v > 0.0 && v <= most, key, v, help);
        positive(
            "finetune.layer_decay",
            f.layer_decay,
            1.0,
            "use a number above 0 and up to 1, where 1 means no decay",
        )?;
        positive(
            "finetune.eval_crop",
            f.eval_crop,
            1.0,
            "use a number above 0 and up to 1, where 1 means the whole image",
        )?;
        positive("finetune.validate_epochs", f.validate_epochs, 1e6, "use a positive number of epochs")?;
        check.not_negative("finetune.head_scale", f.head_scale)?;
        check.that(
            (0.0..1.0).contains(&f.ema),
            "finetune.ema",
            f.ema,
            "use a decay below 1, or 0 for no moving average",
        )?;
        check.within("augment.rand_layers", a.rand_layers, 0, 100)?;
        let magnitude = (0.0..=10.0).contains(&a.rand_magnitude);
        check.that(magnitude, "augment.rand_magnitude", a.rand_magnitude, "use a magnitude from 0 to 10")?;
        for (key, value) in [("rand_std", a.rand_std), ("mixup", a.mixup), ("cutmix", a.cutmix)] {
            check.not_negative(&format!("augment.{key}"), value)?;
        }
        share("augment.color_jitter", a.color_jitter)?;
        share("augment.erase", a.erase)?;
        share("augment.mix_probability", a.mix_probability)?;
        share("augment.mix_switch", a.mix_switch)?;
        share("augment.label_smoothing", a.label_smoothing)
    }

    /// Bounds far beyond any real model: a value above them is a slip that would end in a failed allocation.
    fn validate_sizes(&self, check: &Check<'_>) -> Result<(), TrainError> {
        let (m, t) = (&self.model, &self.train);
        let sides = [("model.image_size", m.image_size), ("model.patch_size", m.patch_size)];
        for (key, [height, width]) in sides.into_iter().chain([("simmim.mask_patch", self.simmim.mask_patch)]) {
            check.within(key, height, 1, 16_384)?;
            check.within(key, width, 1, 16_384)?;
        }
        check.within("model.channels", m.channels, 1, 1024)?;
        check.within("model.embed_dim", m.embed_dim, 1, 65_536)?;
        if let Some(depth) = m.depth {
            check.within("model.depth", depth, 1, 1024)?;
        }
        for &depth in m.depths.iter().flatten() {
            check.within("model.depths", depth, 1, 1024)?;
        }
        let heads = match &m.num_heads {
            Heads::First(heads) => std::slice::from_ref(heads),
            Heads::Each(heads) => heads,
        };
        for &heads in heads {
            check.within("model.num_heads", heads, 1, 65_536)?;
        }
        for &window in m.window_size.iter().chain(m.pretrained_windows.iter().flatten()) {
            check.within("model.window_size", window, 0, 1024)?;
        }
        check.within("simmim.target_window", self.simmim.target_window, 1, 4096)?;
        if let Some(registers) = m.registers {
            check.within("model.registers", registers, 0, 1024)?;
        }
        if let Some(eps) = m.eps {
            check.that(eps > 0.0 && eps < 1.0, "model.eps", eps, "give a small number, such as 1e-6")?;
        }
        check.that(m.mlp_ratio > 0.0 && m.mlp_ratio <= 64.0, "model.mlp_ratio", m.mlp_ratio, "give 4, or up to 64")?;
        check.within("train.batch_size", t.batch_size, 1, 1_000_000)?;
        check.within("train.bucket_bytes", t.bucket_bytes, 256, 1 << 30)?;
        check.that(t.rank_timeout > 0, "train.rank_timeout", t.rank_timeout, "give seconds, such as 600")?;
        if t.accumulation > 0 && t.batch_size % t.accumulation != 0 {
            let found = format!("{}, which does not divide train.batch_size = {}", t.accumulation, t.batch_size);
            return Err(wrong(
                check.0,
                format!("train.accumulation is {found}"),
                "use a divisor of the batch size, or 0",
            ));
        }
        Ok(())
    }

    fn validate_task(&self, check: &Check<'_>) -> Result<(), TrainError> {
        let (m, s) = (&self.model, &self.simmim);
        check.that(
            (0.0..1.0).contains(&m.drop_path),
            "model.drop_path",
            m.drop_path,
            "use a rate from 0 to below 1",
        )?;
        let scale = m.layer_scale.unwrap_or(0.0);
        check.that(scale.is_finite(), "model.layer_scale", scale, "use a number, or 0 for no LayerScale")?;
        let ratio = s.mask_ratio;
        check.that(ratio > 0.0 && ratio < 1.0, "simmim.mask_ratio", ratio, "use a number between 0 and 1")?;
        let block = s.mask_kind == MaskKind::Block && s.mode == ModeKind::Tutorial;
        check.that(!block, "simmim.mask_kind in tutorial mode", "block", "set simmim.mode = \"official\"")
    }

    fn validate_data(&self, check: &Check<'_>) -> Result<(), TrainError> {
        let d = &self.data;
        check.that((0.0..=1.0).contains(&d.flip), "data.flip", d.flip, "use a probability from 0 to 1")?;
        check.range("data.crop_scale", d.crop_scale, 1.0)?;
        check.range("data.crop_ratio", d.crop_ratio, 1000.0)?;
        check.within("data.workers", d.workers, 0, 1024)?;
        check.within("data.prefetch", d.prefetch, 0, 1024)?;
        check.within("data.cache_size", d.cache_size, 0, 32_768)?;
        let background = &d.background;
        check.that(
            background.parse::<Background>().is_ok(),
            "data.background",
            background,
            "write white, black, drop or a colour such as \"#808080\" (red, green and blue in hexadecimal)",
        )?;
        for (key, statistic) in [("data.mean", &d.mean), ("data.std", &d.std)] {
            match statistic {
                Statistic::Given(v) if key == "data.std" => {
                    check.that(v.iter().all(|v| v.is_finite() && *v > 0.0), key, v, "use numbers above 0")?;
                }
                Statistic::Given(v) => check.that(v.iter().all(|v| v.is_finite()), key, v, "use finite numbers")?,
                Statistic::Named(name) => {
                    let known = ["imagenet", "measure"].contains(&name.as_str());
                    check.that(known, key, name, "use \"imagenet\", \"measure\" or one number per channel")?;
                }
            }
        }
        Ok(())
    }

    fn validate_optimizer(&self, check: &Check<'_>) -> Result<(), TrainError> {
        let o = &self.optimizer;
        check.not_negative("optimizer.lr", o.lr)?;
        check.not_negative("optimizer.weight_decay", o.weight_decay)?;
        check.not_negative("optimizer.eps", o.eps)?;
        check.not_negative("optimizer.clip_norm", o.clip_norm)?;
        let good = o.betas.iter().all(|b| (0.0..1.0).contains(b));
        check.that(good, "optimizer.betas", o.betas, "use two numbers from 0 to below 1")
    }

    fn validate_schedule(&self, check: &Check<'_>) -> Result<(), TrainError> {
        let s = &self.schedule;
        let twice = |what: &str| Err(wrong(check.0, format!("schedule gives {what}"), "set one of them to 0"));
        // Only training needs a length: `Recipe::for_pretraining` and `Recipe::for_finetuning` ask for one.
        if s.epochs > 0 && s.steps > 0 {
            return twice("the length in both epochs and steps");
        }
        if s.warmup_epochs != 0.0 && s.warmup_steps != 0 {
            return twice("the warm-up in both epochs and steps");
        }
        check.not_negative("schedule.warmup_epochs", s.warmup_epochs)?;
        check.not_negative("schedule.warmup_lr", s.warmup_lr)?;
        check.not_negative("schedule.min_lr", s.min_lr)?;
        check.not_negative("schedule.gamma", s.gamma)?;
        s.milestones.iter().try_for_each(|&m| check.not_negative("schedule.milestones", m))
    }
}
