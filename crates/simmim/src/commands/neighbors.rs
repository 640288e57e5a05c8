//! `simmim neighbors`.

#![allow(clippy::print_stdout, reason = "results go to standard output")]

use crate::arguments::{LogFormat, Neighbors};
use crate::commands::features::{Maker, TRAINED, check_pooling};
use crate::commands::{check_output, open_images, weights};
use crate::diagnostics::Failure;
use crate::meter::say;
use simmim_data::{Source, source};
use simmim_engine::host::Pool;
use simmim_train::contact_sheet::{self, Tile};
use simmim_train::features::{Features, Layer, Matrix};
use simmim_train::probe::knn::{nearest, normalised};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

pub(crate) fn run(a: &Neighbors, format: LogFormat) -> Result<ExitCode, Failure> {
    check_output(&a.out)?;
    weights::recipe(&a.weights)?;
    let images = open_images(&a.data)?;
    let query = Query::open(&a.query, &*images)?;
    let model = weights::encoder(&a.weights, &*images)?;
    model.announce(format);
    let layer = Layer::of(a.layer, &model.encoder)?;
    check_pooling(&model, a.pool.pooling(), format)?;
    let how = (vec![layer], a.pool.pooling(), a.batch);
    let mut maker = Maker::new(&model, (&model.tensors, TRAINED), how, &a.weights.device, format);
    let bank = maker.of(&*images, "the data")?;
    let (feature, own) = match &query {
        Query::Member(index) => {
            let Ok(row) = bank.images.binary_search(index) else {
                return Err(Failure::input(format!("image #{index} could not be read"), "choose another"));
            };
            (first(&bank)?.select(&[row]), Some(row))
        }
        Query::File(file) => {
            let own = place_of(&**file, &*images)?;
            if let Some(own) = own {
                say(format, "message", &format!("the query is image #{own} of the data, and is left out"));
            }
            let row = own.and_then(|own| bank.images.binary_search(&own).ok());
            (first(&maker.of_unkept(&**file)?)?.clone(), row)
        }
    };
    let k = a.k.max(1) + usize::from(own.is_some());
    let pool = Pool::new(a.weights.device.host_threads());
    let found = nearest(&pool, &normalised(first(&bank)?), &normalised(&feature), k);
    let found: Vec<_> = found.into_iter().flatten().filter(|n| Some(n.row) != own).collect();
    let channels = model.recipe.model.channels;
    let mut tiles = vec![match &query {
        Query::Member(index) => Tile::new(&*images, *index, channels, format!("query #{index}"))?,
        Query::File(file) => Tile::new(&**file, 0, channels, "query".into())?,
    }];
    for (rank, n) in found.iter().enumerate() {
        let image = bank.images[n.row];
        let label = images.label(image).and_then(|l| images.class_names().get(l)).map(String::as_str);
        let caption = format!("{:.4} {}", n.similarity, label.unwrap_or_default());
        tiles.push(Tile::new(&*images, image, channels, caption)?);
        let label = label.map(|l| format!("\t{l}")).unwrap_or_default();
        println!("{}\t{:.6}\t{}{label}", rank + 1, n.similarity, images.name(image));
    }
    contact_sheet::draw(&a.out, &tiles)?;
    println!("picture: {}", a.out.display());
    Ok(ExitCode::SUCCESS)
}

fn first(features: &Features) -> Result<&Matrix, Failure> {
    features.layers.first().ok_or_else(|| Failure::running("internal: no layer was asked for"))
}

/// The number of the image whose file is that of the query, whatever ways lead to it. A copy of the file is another image.
fn place_of(query: &dyn Source, images: &dyn Source) -> Result<Option<usize>, Failure> {
    let mut path = PathBuf::new();
    let mut real = |source: &dyn Source, index: usize| -> Result<Option<PathBuf>, Failure> {
        // A file that is gone is nobody's; that it is gone is said where it is read.
        Ok(if source.file(index, &mut path)? { path.canonicalize().ok() } else { None })
    };
    let Some(own) = real(query, 0)? else { return Ok(None) };
    for index in 0..images.len() {
        if real(images, index)?.as_ref() == Some(&own) {
            return Ok(Some(index));
        }
    }
    Ok(None)
}

/// What is searched for.
enum Query {
    /// An image of the data.
    Member(usize),
    /// A file.
    File(Box<dyn Source>),
}

impl Query {
    fn open(text: &str, images: &dyn Source) -> Result<Self, Failure> {
        if let Some(number) = text.strip_prefix('#').filter(|_| !Path::new(text).exists()) {
            let known = number.parse().ok().filter(|n| *n < images.len());
            return known.map(Self::Member).ok_or_else(|| {
                Failure::input(
                    format!("there is no image {text}"),
                    format!("the data has {} images: use #0 to #{}", images.len(), images.len().saturating_sub(1)),
                )
            });
        }
        let file = source::open(Path::new(text))?;
        if file.len() != 1 {
            return Err(Failure::input(format!("{text} holds {} images", file.len()), "use a single image file"));
        }
        Ok(Self::File(file))
    }
}
