//! The recipe that fits given images: `--recipe auto`.

use super::{Recipe, wrong};
use crate::error::TrainError;
use simmim_data::{Image, Pixels, Source};

/// Images that are looked at.
const LOOKED_AT: usize = 48;
/// Sizes of crops with the recipe for each.
const SIZES: [(usize, &str); 3] = [(32, "small_images_32"), (64, "small_images_64"), (96, "small_images_96")];

/// A recipe chosen by the images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// Name of the embedded recipe.
    pub recipe: &'static str,
    /// Single values on top, `KEY=VALUE`.
    pub set: Vec<String>,
    /// What was seen and why this follows from it, for the user.
    pub reason: String,
}

/// What matters of one image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    short_side: usize,
    gray: bool,
}

impl Choice {
    /// Looks at images spread over the source. The size of the crops is the smallest of 32, 64 and 96 pixels that holds the median of
    /// the shorter sides; gray images get one channel.
    ///
    /// # Errors
    /// [`TrainError::Recipe`] where none of them can be read as gray or colour.
    pub fn by(source: &dyn Source) -> Result<Self, TrainError> {
        let count = source.len().min(LOOKED_AT);
        let mut first = None;
        let mut seen = Vec::new();
        for i in 0..count {
            match source.load(i * source.len() / count, 3.into()) {
                Ok(image) => seen.push(Seen::of(&image)),
                Err(error) => first = first.or(Some(error)),
            }
        }
        if seen.is_empty() {
            let why = first.map_or_else(|| "there are no images".to_owned(), |e| e.to_string());
            let what = format!("none of {count} images that were looked at can be read as gray or colour: {why}");
            return Err(wrong("--recipe auto", what, "name a recipe (`simmim recipes list`) and set model.channels"));
        }
        Ok(Self::from_seen(&mut seen, source.len()))
    }

    fn from_seen(seen: &mut [Seen], images: usize) -> Self {
        seen.sort_by_key(|s| s.short_side);
        let median = seen[seen.len() / 2].short_side;
        let gray = seen.iter().filter(|s| s.gray).count();
        let channels = if gray == seen.len() { 1 } else { 3 };
        let (size, recipe) = SIZES.into_iter().find(|(size, _)| *size >= median).unwrap_or(SIZES[SIZES.len() - 1]);
        let color = match (gray, channels) {
            (_, 1) => "gray".to_owned(),
            (0, _) => "colour".to_owned(),
            _ => format!("colour, {gray} of {} gray", seen.len()),
        };
        let mut reason = format!("recipe {recipe}: {images} images, median of the shorter sides {median} px, {color}");
        if median > size {
            reason.push_str(&format!("; crops are reduced to {size} px, set model.image_size for more"));
        }
        let set = if channels == 1 { vec!["model.channels=1".to_owned()] } else { Vec::new() };
        Self { recipe, set, reason }
    }

    /// The recipe with its own values, and `set` on top of them.
    ///
    /// # Errors
    /// As [`Recipe::resolve`].
    pub fn resolve(&self, set: &[String]) -> Result<Recipe, TrainError> {
        let all: Vec<String> = self.set.iter().chain(set).cloned().collect();
        Recipe::resolve(self.recipe, &all)
    }
}

impl Seen {
    /// `image` has three channels.
    fn of(image: &Image) -> Self {
        let gray = match &image.pixels {
            Pixels::U8(v) => all_equal(v),
            Pixels::U16(v) => all_equal(v),
            Pixels::F32(v) => all_equal(v),
        };
        Self { short_side: image.width.min(image.height), gray }
    }
}

fn all_equal<T: PartialEq>(samples: &[T]) -> bool {
    samples.chunks_exact(3).all(|p| p[0] == p[1] && p[1] == p[2])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(sides: &[usize], gray: usize) -> Vec<Seen> {
        sides.iter().enumerate().map(|(i, &short_side)| Seen { short_side, gray: i < gray }).collect()
    }

    #[test]
    fn the_demonstration_set_is_small_and_gray() {
        let choice = Choice::by(&simmim_data::demo().unwrap()).unwrap();
        assert_eq!((choice.recipe, choice.set.as_slice()), ("small_images_32", &["model.channels=1".to_owned()][..]));
        assert!(choice.reason.contains("6000 images, median of the shorter sides 28 px, gray"), "{}", choice.reason);
        let recipe = choice.resolve(&["train.seed=7".to_owned()]).unwrap();
        assert_eq!((recipe.model.channels, recipe.model.image_size, recipe.train.seed), (1, [32, 32], 7));
    }

    #[test]
    fn size_and_channels_follow_the_images() {
        for (sides, gray, images, recipe, set, said) in [
            (&[64, 64, 64][..], 0, 15_000, "small_images_64", &[][..], "64 px, colour"),
            (&[33, 20, 900], 1, 15_000, "small_images_64", &[], "33 px, colour, 1 of 3 gray"),
            (&[96; 4], 4, 500, "small_images_96", &["model.channels=1"], "96 px, gray"),
            (&[3000, 2000, 4000], 0, 500, "small_images_96", &[], "reduced to 96 px"),
        ] {
            let choice = Choice::from_seen(&mut seen(sides, gray), images);
            assert_eq!(
                (choice.recipe, &choice.set[..]),
                (recipe, &set.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>()[..])
            );
            assert!(choice.reason.contains(said), "{}", choice.reason);
            choice.resolve(&[]).unwrap();
        }
    }

    #[test]
    fn values_given_by_the_user_win() {
        let choice = Choice::from_seen(&mut seen(&[28], 1), 10);
        let set = ["model.depth=2".to_owned(), "model.channels=3".to_owned()];
        let recipe = choice.resolve(&set).unwrap();
        assert_eq!((recipe.model.depth, recipe.model.channels), (Some(2), 3));
    }
}
