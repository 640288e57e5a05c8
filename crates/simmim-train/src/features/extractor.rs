//! Images through an encoder, in batches.

use super::{Features, Layer, Matrix, Pooling};
use crate::error::TrainError;
use simmim_data::{DataError, Source, Transform, load_centered};
use simmim_engine::{Executor, Graph, InputSlot, OutputSlot, Program, ProgramId};
use simmim_models::encoder::{EncoderOutputs, Layer as Shape, encoder_graph};
use simmim_models::names::{IMAGES, NORMED_TOKENS, block_output};
use simmim_models::{Encoder, Precision};
use std::ops::Range;
use std::sync::mpsc::sync_channel;

/// Batches read ahead of the encoder.
const AHEAD: usize = 2;

/// The place of an image that could not be read, and why.
pub(crate) type Unread = (usize, DataError);

/// Receives a layer (a place among those asked for), a row of the batch and the feature.
type Take<'a> = dyn FnMut(usize, usize, &[f32]) + 'a;

/// The encoder's program on an executor.
#[derive(Debug)]
pub(crate) struct EncoderProgram {
    id: ProgramId,
    images: InputSlot,
    /// The tokens of each layer.
    layers: Vec<OutputSlot>,
    batch: usize,
    shapes: Vec<Shape>,
    buffer: Vec<f32>,
}

impl EncoderProgram {
    /// The graph that gives the tokens after `layers`.
    pub(crate) fn graph(encoder: &Encoder, layers: &[Layer], batch: usize) -> Result<Graph, TrainError> {
        let block = |l: &Layer| if let Layer::Block(k) = l { Some(*k) } else { None };
        let blocks: Vec<usize> = layers.iter().filter_map(block).collect();
        let outputs = match (layers.contains(&Layer::Norm), blocks.is_empty()) {
            (true, true) => EncoderOutputs::Norm,
            (true, false) => EncoderOutputs::BlocksAndNorm(blocks),
            (false, _) => EncoderOutputs::Blocks(blocks),
        };
        Ok(encoder_graph(encoder, batch, &outputs)?)
    }

    /// A program that was compiled from [`EncoderProgram::graph`] and loaded.
    pub(crate) fn new(
        executor: &dyn Executor,
        id: ProgramId,
        encoder: &Encoder,
        layers: &[Layer],
        batch: usize,
    ) -> Result<Self, TrainError> {
        let shapes: Vec<Shape> = layers.iter().map(|layer| layer.shape(encoder)).collect();
        let largest = shapes.iter().map(|shape| shape.tokens() * shape.width).max().unwrap_or(0);
        let output = |layer: &Layer| match layer {
            Layer::Block(k) => executor.output(id, &block_output(*k)),
            Layer::Norm => executor.output(id, NORMED_TOKENS),
        };
        Ok(Self {
            id,
            images: executor.input(id, IMAGES)?,
            layers: layers.iter().map(output).collect::<Result<_, _>>()?,
            shapes,
            batch,
            buffer: vec![0.0; batch * largest],
        })
    }

    pub(crate) fn batch(&self) -> usize {
        self.batch
    }

    /// Length of a feature of each layer.
    pub(crate) fn values(&self, pooling: Pooling) -> Vec<usize> {
        let values = |shape: Shape| if pooling == Pooling::None { shape.tokens() * shape.width } else { shape.width };
        self.shapes.iter().map(|shape| values(*shape)).collect()
    }

    /// Runs the first `rows` images of a batch; `images` holds a whole one.
    pub(crate) fn run(
        &mut self,
        executor: &mut dyn Executor,
        images: &[f32],
        rows: usize,
        pooling: Pooling,
        take: &mut Take<'_>,
    ) -> Result<(), TrainError> {
        executor.write(self.images, images)?;
        executor.run(self.id)?;
        for (place, (&layer, shape)) in self.layers.iter().zip(&self.shapes).enumerate() {
            let (dim, values) = (shape.width, shape.tokens() * shape.width);
            let mut mean = vec![0.0; dim];
            let buffer = &mut self.buffer[..self.batch * values];
            executor.read(layer, buffer)?;
            for (row, tokens) in buffer.chunks_exact(values).take(rows).enumerate() {
                match pooling {
                    Pooling::None => take(place, row, tokens),
                    Pooling::Class => take(place, row, &tokens[..dim]),
                    Pooling::Mean => {
                        let patches = tokens[shape.prefix * dim..].chunks_exact(dim);
                        let share = 1.0 / patches.len() as f32;
                        mean.fill(0.0);
                        patches.for_each(|t| mean.iter_mut().zip(t).for_each(|(m, v)| *m += v * share));
                        take(place, row, &mean);
                    }
                }
            }
        }
        Ok(())
    }
}

/// What is done with a batch; see [`for_batches`].
pub(crate) type EachBatch<'a> = dyn FnMut(Range<usize>, &[f32], &[Unread]) -> Result<(), TrainError> + 'a;

/// Reads images in the order of `indices` with `threads` threads, some batches ahead, and calls `each` with the places in
/// `indices` of every batch, its pixels `[batch, channels, height, width]`, zero after the last image, and the places of images
/// that could not be read, so far and in this batch. Returns all of those.
pub(crate) fn for_batches(
    source: &dyn Source,
    indices: &[usize],
    transform: &Transform,
    (batch, threads): (usize, usize),
    each: &mut EachBatch<'_>,
) -> Result<Vec<Unread>, TrainError> {
    let values = transform.values();
    std::thread::scope(|scope| {
        let (sender, batches) = sync_channel(AHEAD);
        let read = move || {
            for chunk in indices.chunks(batch) {
                let mut pixels = vec![0.0; batch * values];
                let bad = load_centered(source, chunk, transform, threads, &mut pixels[..chunk.len() * values]);
                if sender.send((pixels, chunk.len(), bad)).is_err() {
                    return;
                }
            }
        };
        std::thread::Builder::new()
            .name("reader".into())
            .spawn_scoped(scope, read)
            .map_err(|e| TrainError::Internal { what: format!("cannot start a thread to read images: {e}") })?;
        let (mut start, mut unreadable) = (0, Vec::new());
        for (pixels, len, bad) in batches {
            unreadable.extend(bad?.into_iter().map(|(row, error)| (start + row, error)));
            each(start..start + len, &pixels, &unreadable)?;
            start += len;
        }
        Ok(unreadable)
    })
}

/// Which features, and how many images in a pass.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The layers.
    pub layers: Vec<Layer>,
    /// How tokens become one vector.
    pub pooling: Pooling,
    /// What happens to the images; the centred crop is taken.
    pub transform: Transform,
    /// Images in a pass of the encoder.
    pub batch: usize,
    /// Threads that read images.
    pub threads: usize,
    /// Unreadable images that are passed over before the pass fails.
    pub max_errors: usize,
    /// What the encoder computes with.
    pub precision: Precision,
}

/// An encoder with its weights, for features. See the module's documentation.
pub struct Extractor {
    executor: Box<dyn Executor>,
    program: EncoderProgram,
    plan: Plan,
}

impl std::fmt::Debug for Extractor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Extractor").field("program", &self.program).field("plan", &self.plan).finish_non_exhaustive()
    }
}

impl Extractor {
    /// Loads the encoder. `weights` are named as [`simmim_models::weights::match_parameters`] gives them; more than the encoder
    /// needs do not harm.
    ///
    /// # Errors
    /// [`TrainError::Input`] where the class token is asked of an encoder that has none or weights are missing; impossible sizes.
    pub fn new(
        mut executor: Box<dyn Executor>,
        encoder: &Encoder,
        weights: &[(String, Vec<f32>)],
        plan: Plan,
    ) -> Result<Self, TrainError> {
        if plan.pooling == Pooling::Class && !encoder.geometry().class_token {
            return Err(TrainError::Input {
                what: "the model has no class token".into(),
                help: "take --pool mean".into(),
            });
        }
        let batch = plan.batch.max(1);
        let graph = EncoderProgram::graph(encoder, &plan.layers, batch)?;
        let needed: Vec<String> = graph.states().map(|(_, state)| state.name.clone()).collect();
        let program = Program::compile(&*plan.precision.lower(&graph)?)?;
        let id = executor.load(program)?;
        for name in needed {
            let Some((_, data)) = weights.iter().find(|(known, _)| *known == name) else {
                return Err(TrainError::Input {
                    what: format!("the weights lack {name}"),
                    help: "name the model of these weights with --model, --image-size or --recipe".into(),
                });
            };
            executor.write_state(&name, data)?;
        }
        let program = EncoderProgram::new(&*executor, id, encoder, &plan.layers, batch)?;
        Ok(Self { executor, program, plan })
    }

    /// Length of a feature of each layer.
    #[must_use]
    pub fn values(&self) -> Vec<usize> {
        self.program.values(self.plan.pooling)
    }

    /// Calls `take(layer, place in indices, feature)` for every image, batch by batch, within a batch layer by layer; and
    /// `done(images so far)` after every batch. Returns the places of images that could not be read and were passed over.
    ///
    /// # Errors
    /// [`DataError::TooManyFailures`], faults of the device, a transform that cannot work.
    pub fn for_each(
        &mut self,
        source: &dyn Source,
        indices: &[usize],
        take: &mut Take<'_>,
        done: &mut dyn FnMut(usize),
    ) -> Result<Vec<Unread>, TrainError> {
        let Self { executor, program, plan } = self;
        let reading = (program.batch(), plan.threads);
        for_batches(source, indices, &plan.transform, reading, &mut |range, pixels, unread| {
            if unread.len() > plan.max_errors {
                return Err(too_many(unread, plan.max_errors));
            }
            let mut placed = |layer: usize, row: usize, feature: &[f32]| {
                let place = range.start + row;
                if unread.binary_search_by_key(&place, |u| u.0).is_err() {
                    take(layer, place, feature);
                }
            };
            program.run(&mut **executor, pixels, range.len(), plan.pooling, &mut placed)?;
            done(range.end);
            Ok(())
        })
    }

    /// The features of the images at `indices`; unreadable ones are left out and listed.
    ///
    /// # Errors
    /// As [`Extractor::for_each`]; [`DataError::NothingReadable`] where no image can be read.
    pub fn collect(
        &mut self,
        source: &dyn Source,
        indices: &[usize],
        done: &mut dyn FnMut(usize),
    ) -> Result<Features, TrainError> {
        let empty = |cols: usize| Matrix { rows: indices.len(), cols, data: vec![0.0; indices.len() * cols] };
        let mut layers: Vec<Matrix> = self.values().into_iter().map(empty).collect();
        let mut take = |layer: usize, place: usize, feature: &[f32]| {
            let cols = feature.len();
            layers[layer].data[place * cols..(place + 1) * cols].copy_from_slice(feature);
        };
        let bad = self.for_each(source, indices, &mut take, done)?;
        assemble(indices, layers, bad)
    }
}

fn too_many(unread: &[Unread], limit: usize) -> TrainError {
    let examples = unread.iter().take(3).map(|(_, e)| e.to_string()).collect::<Vec<_>>().join("; ");
    DataError::TooManyFailures { found: unread.len(), limit, examples }.into()
}

/// Leaves out rows of images that could not be read.
pub(super) fn assemble(indices: &[usize], layers: Vec<Matrix>, bad: Vec<Unread>) -> Result<Features, TrainError> {
    if bad.is_empty() {
        return Ok(Features { images: indices.to_vec(), layers, unreadable: Vec::new() });
    }
    if bad.len() == indices.len() {
        let examples = bad.iter().take(3).map(|(_, e)| e.to_string()).collect::<Vec<_>>().join("; ");
        return Err(DataError::NothingReadable { found: bad.len(), examples }.into());
    }
    let missing: std::collections::BTreeSet<usize> = bad.iter().map(|(place, _)| *place).collect();
    let kept: Vec<usize> = (0..indices.len()).filter(|place| !missing.contains(place)).collect();
    Ok(Features {
        images: kept.iter().map(|&place| indices[place]).collect(),
        layers: layers.iter().map(|m| m.select(&kept)).collect(),
        unreadable: bad.into_iter().map(|(place, error)| (indices[place], error.to_string())).collect(),
    })
}

/// The pixels themselves as features: what the encoder is given, flattened; `[rows, channels height width]`.
///
/// # Errors
/// As [`Extractor::collect`].
pub fn pixels(
    source: &dyn Source,
    indices: &[usize],
    transform: &Transform,
    threads: usize,
) -> Result<Features, TrainError> {
    let cols = transform.values();
    let mut data = vec![0.0; indices.len() * cols];
    let bad = load_centered(source, indices, transform, threads, &mut data)?;
    assemble(indices, vec![Matrix { rows: indices.len(), cols, data }], bad)
}

#[cfg(test)]
mod tests {
    use super::*;
    use simmim_data::{Image, demo_held_out};
    use simmim_engine::cpu::CpuExecutor;
    use simmim_models::SimMimConfig;

    /// The demo images, some of which cannot be read.
    struct Torn(Vec<usize>);

    impl Source for Torn {
        fn len(&self) -> usize {
            10
        }
        fn name(&self, index: usize) -> String {
            index.to_string()
        }
        fn label(&self, _: usize) -> Option<usize> {
            None
        }
        fn class_names(&self) -> &[String] {
            &[]
        }
        fn load(&self, index: usize, channels: simmim_data::Channels) -> Result<Image, DataError> {
            if self.0.contains(&index) {
                return Err(DataError::Damaged { path: format!("{index}.png").into(), reason: "torn".into() });
            }
            demo_held_out()?.load(index, channels)
        }
    }

    fn encoder() -> simmim_models::VitConfig {
        let mut encoder = simmim_models::VitConfig::preset("vit_tiny_patch14_28").unwrap();
        encoder.patch_size = (7, 7);
        (encoder.channels, encoder.embed_dim, encoder.depth, encoder.num_heads) = (1, 16, 2, 2);
        encoder
    }

    fn collect(torn: &[usize], layers: &[Layer], pooling: Pooling, limit: usize) -> Result<Features, TrainError> {
        let encoder = encoder();
        let specs = SimMimConfig::official(encoder.clone(), (7, 7), 0.5).parameters();
        let weights: Vec<(String, Vec<f32>)> = specs.iter().map(|p| (p.name.clone(), p.initial(1))).collect();
        let transform = Transform::new((28, 28), 1);
        let plan = Plan {
            layers: layers.to_vec(),
            pooling,
            transform,
            batch: 4,
            threads: 2,
            max_errors: limit,
            precision: Precision::Float32,
        };
        let executor = Box::new(CpuExecutor::new(2).unwrap());
        let all: Vec<usize> = (0..10).collect();
        Extractor::new(executor, &encoder.into(), &weights, plan)?.collect(&Torn(torn.to_vec()), &all, &mut |_| {})
    }

    #[test]
    fn several_layers_at_once_are_those_of_single_passes_and_the_mean_is_that_of_the_patches() {
        let both = collect(&[], &[Layer::Block(1), Layer::Norm], Pooling::None, 0).unwrap();
        assert_eq!(both.images, (0..10).collect::<Vec<_>>());
        for (i, layer) in [Layer::Block(1), Layer::Norm].into_iter().enumerate() {
            assert_eq!(both.layers[i], collect(&[], &[layer], Pooling::None, 0).unwrap().layers[0]);
        }
        assert_ne!(both.layers[0], both.layers[1]);
        let class = collect(&[], &[Layer::Norm], Pooling::Class, 0).unwrap();
        let mean = collect(&[], &[Layer::Norm], Pooling::Mean, 0).unwrap();
        for row in 0..10 {
            let tokens: Vec<&[f32]> = both.layers[1].row(row).chunks_exact(16).collect();
            assert_eq!((tokens.len(), class.layers[0].row(row)), (17, tokens[0]));
            for (c, &found) in mean.layers[0].row(row).iter().enumerate() {
                let expected = tokens[1..].iter().map(|t| t[c]).sum::<f32>() / 16.0;
                assert!((found - expected).abs() < 1e-6, "{found} {expected}");
            }
        }
    }

    #[test]
    fn unreadable_images_are_left_out_up_to_the_limit() {
        let layers = [Layer::Block(2)];
        let whole = collect(&[], &layers, Pooling::Mean, 0).unwrap();
        let some = collect(&[0, 5], &layers, Pooling::Mean, 2).unwrap();
        assert_eq!(some.images, [1, 2, 3, 4, 6, 7, 8, 9]);
        assert_eq!(some.layers[0], whole.layers[0].select(&some.images));
        assert_eq!(some.unreadable.iter().map(|u| u.0).collect::<Vec<_>>(), [0, 5]);
        let error = collect(&[0, 5], &layers, Pooling::Mean, 1).unwrap_err().to_string();
        assert!(error.contains("2 images could not be read, more than the 1 allowed"), "{error}");
    }
}
