//! Features of whole sources, taken from the run's folder where they are kept.

use crate::arguments::LogFormat;
use crate::commands::weights::Encoder;
use crate::device::{self, DeviceArguments};
use crate::diagnostics::Failure;
use crate::meter::{Meter, say, warn_unreadable};
use simmim_data::Source;
use simmim_train::features::{Extractor, FeatureCache, Features, Key, Layer, Plan, Pooling};

/// Role of the weights in question.
pub(crate) const TRAINED: &str = "trained";
/// Role of the weights they would start from.
pub(crate) const RANDOM: &str = "random";

/// Makes features of one set of weights.
pub(crate) struct Maker<'a> {
    encoder: &'a Encoder,
    weights: &'a [(String, Vec<f32>)],
    /// What the weights are, in file names and progress lines.
    role: &'static str,
    plan: Plan,
    device: &'a DeviceArguments,
    cache: FeatureCache,
    extractor: Option<Extractor>,
    format: LogFormat,
    /// Keys of the features made so far that are kept.
    keys: Vec<Key>,
}

impl<'a> Maker<'a> {
    pub(crate) fn new(
        encoder: &'a Encoder,
        (weights, role): (&'a [(String, Vec<f32>)], &'static str),
        (layers, pooling, batch): (Vec<Layer>, Pooling, usize),
        device: &'a DeviceArguments,
        format: LogFormat,
    ) -> Self {
        let plan = encoder.plan(layers, pooling, batch, device);
        let cache = FeatureCache::new(encoder.run.as_deref());
        Self { encoder, weights, role, plan, device, cache, extractor: None, format, keys: Vec::new() }
    }

    /// The features of all images of a source. `what` names it in progress lines.
    pub(crate) fn of(&mut self, source: &dyn Source, what: &str) -> Result<Features, Failure> {
        let key = match self.encoder.run {
            Some(_) => Some(Key::new(source, &self.plan, &self.encoder.encoder, self.weights)?),
            None => None,
        };
        let title = format!("{} features of {what}", self.role);
        let features = if let Some(known) = key.as_ref().and_then(|key| self.cache.load(self.role, key)) {
            say(self.format, "message", &format!("{title}: {} images, from the cache", known.images.len()));
            known
        } else {
            let mut meter = Meter::new(self.format, title, source.len());
            let extractor = self.extractor()?;
            let all: Vec<usize> = (0..source.len()).collect();
            let made = extractor.collect(source, &all, &mut |done| meter.at(done))?;
            meter.finish(made.images.len());
            if let Some(key) = &key
                && let Err(e) = self.cache.store(self.role, key, &made)
            {
                say(self.format, "warning", &format!("the features could not be cached: {e}"));
            }
            made
        };
        self.keys.extend(key);
        // The same images are unreadable for any weights: those of the trained ones tell.
        if self.role == TRAINED {
            let reasons = features.unreadable.iter().map(|(_, reason)| reason.as_str());
            warn_unreadable(self.format, features.unreadable.len(), reasons);
        }
        Ok(features)
    }

    /// What the features made so far follow from; empty for weights that belong to no run.
    pub(crate) fn conditions(&self) -> String {
        self.keys.iter().map(Key::conditions).collect::<Vec<_>>().join(" ")
    }

    /// The features of images that are not worth keeping any for.
    ///
    /// # Errors
    /// An image that cannot be read.
    pub(crate) fn of_unkept(&mut self, source: &dyn Source) -> Result<Features, Failure> {
        let all: Vec<usize> = (0..source.len()).collect();
        Ok(self.extractor()?.collect(source, &all, &mut |_| {})?)
    }

    fn extractor(&mut self) -> Result<&mut Extractor, Failure> {
        let made = match self.extractor.take() {
            Some(known) => known,
            None => {
                let executor = device::open(self.device)?;
                Extractor::new(executor, &self.encoder.encoder, self.weights, self.plan.clone())?
            }
        };
        Ok(self.extractor.insert(made))
    }
}

/// Refuses and warns where tokens are pooled in a way that makes no sense.
pub(crate) fn check_pooling(encoder: &Encoder, pooling: Pooling, format: LogFormat) -> Result<(), Failure> {
    match pooling {
        Pooling::None => Err(Failure::input("--pool none does not give one vector per image", "use --pool mean")),
        Pooling::Class if !encoder.encoder.geometry().class_token => {
            Err(Failure::input("the model has no class token", "use --pool mean"))
        }
        Pooling::Class if encoder.simmim => {
            say(
                format,
                "warning",
                "SimMIM never trains the class token: its features are close to random; use --pool mean",
            );
            Ok(())
        }
        _ => Ok(()),
    }
}
