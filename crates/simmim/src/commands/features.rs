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
    /// The last encoder, with the layers that it gives.
    extractor: Option<(Vec<Layer>, Extractor)>,
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
        let known = self.plan.layers.iter().map(|&layer| self.cache.load(self.role, key.as_ref()?, layer)).collect();
        let features = self.complete(source, key.as_ref(), known, &title)?;
        self.keys.extend(key);
        // The same images are unreadable for any weights: those of the trained ones tell.
        if self.role == TRAINED {
            let reasons = features.unreadable.iter().map(|(_, reason)| reason.as_str());
            warn_unreadable(self.format, features.unreadable.len(), reasons);
        }
        Ok(features)
    }

    /// The features of all layers, of which some are `known`; the others are made and kept.
    fn complete(
        &mut self,
        source: &dyn Source,
        key: Option<&Key>,
        mut known: Vec<Option<Features>>,
        title: &str,
    ) -> Result<Features, Failure> {
        let missing = |known: &[Option<Features>]| -> Vec<Layer> {
            let layers = self.plan.layers.iter().zip(known);
            layers.filter(|(_, known)| known.is_none()).map(|(layer, _)| *layer).collect()
        };
        let mut wanted = missing(&known);
        let mut made = Features::default();
        if !wanted.is_empty() {
            made = self.make(source, &wanted, title)?;
            let same = |f: &Features| f.images == made.images;
            if !known.iter().flatten().all(same) {
                // An image could be read then and not now, or the other way round.
                known.fill(None);
                wanted = self.plan.layers.clone();
                made = self.make(source, &wanted, title)?;
            }
            if let Some(key) = key
                && let Err(e) = self.cache.store(self.role, key, &wanted, &made)
            {
                say(self.format, "warning", &format!("the features could not be cached: {e}"));
            }
        }
        let cached = known.iter().flatten().count();
        let (mut new, mut layers) = (std::mem::take(&mut made.layers).into_iter(), Vec::new());
        for known in known {
            match known {
                Some(one) => {
                    layers.extend(one.layers);
                    (made.images, made.unreadable) = (one.images, one.unreadable);
                }
                None => layers.extend(new.next()),
            }
        }
        if cached > 0 {
            let what = if wanted.is_empty() { String::new() } else { format!("{cached} of {} layers ", layers.len()) };
            say(self.format, "message", &format!("{title}: {} images, {what}from the cache", made.images.len()));
        }
        Ok(Features { layers, ..made })
    }

    /// Makes the features of these layers.
    fn make(&mut self, source: &dyn Source, layers: &[Layer], title: &str) -> Result<Features, Failure> {
        let mut meter = Meter::new(self.format, title, source.len());
        let all: Vec<usize> = (0..source.len()).collect();
        let made = self.extractor(layers)?.collect(source, &all, &mut |done| meter.at(done))?;
        meter.finish(made.images.len());
        Ok(made)
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
        let layers = self.plan.layers.clone();
        Ok(self.extractor(&layers)?.collect(source, &all, &mut |_| {})?)
    }

    /// The encoder for these layers: the one before where it gives the same.
    fn extractor(&mut self, layers: &[Layer]) -> Result<&mut Extractor, Failure> {
        let made = match self.extractor.take() {
            Some((known, extractor)) if known == layers => extractor,
            _ => {
                let plan = Plan { layers: layers.to_vec(), ..self.plan.clone() };
                Extractor::new(device::open(self.device)?, &self.encoder.encoder, self.weights, plan)?
            }
        };
        Ok(&mut self.extractor.insert((layers.to_vec(), made)).1)
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
