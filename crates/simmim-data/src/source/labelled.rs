//! Images with a known class each.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use simmim_random::{Purpose, Stream};

use super::{Source, element};
use crate::{Channels, DataError, Image};

/// Classes that an error names.
const NAMED: usize = 8;

const NO_CLASS: &str = "the first folder level names the class (cats/1.jpg, dogs/2.jpg), in a list what stands behind the path; \
                        IDX images need their label file beside them";
const FOREIGN: &str =
    "classes are matched by name, those of folders by the first folder level: rename these or take them out";

/// A source of which every image has a class, numbered by a given list of names.
#[derive(Clone)]
pub struct LabelledSource {
    source: Arc<dyn Source>,
    path: PathBuf,
    labels: Vec<usize>,
    classes: Vec<String>,
}

impl std::fmt::Debug for LabelledSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Labelled").field("path", &self.path).field("images", &self.labels.len()).finish_non_exhaustive()
    }
}

impl LabelledSource {
    /// The images of a source with the classes that occur in it, in the order of the source. `path` names it in errors.
    ///
    /// # Errors
    /// [`DataError::Labels`] where an image has no class, or all have the same.
    pub fn new(source: Arc<dyn Source>, path: &Path) -> Result<Self, DataError> {
        let mut seen = vec![false; source.class_names().len()];
        for label in (0..source.len()).filter_map(|i| source.label(i)) {
            if let Some(seen) = seen.get_mut(label) {
                *seen = true;
            }
        }
        let names = source.class_names().iter().zip(&seen);
        let classes: Vec<String> = names.filter(|(_, seen)| **seen).map(|(name, _)| name.clone()).collect();
        let labelled = Self::with_classes(source, path, &classes)?;
        if classes.len() == 1 {
            let what = format!("all images are of one class, `{}`", classes[0]);
            return Err(labels(path, what, "give images of two classes or more: there is nothing to tell apart"));
        }
        Ok(labelled)
    }

    /// The images of a source with classes known by name from elsewhere (the training images, a checkpoint).
    ///
    /// # Errors
    /// [`DataError::Labels`] where an image has no class or one that is not in the list.
    pub fn with_classes(source: Arc<dyn Source>, path: &Path, classes: &[String]) -> Result<Self, DataError> {
        let index: Vec<Option<usize>> =
            source.class_names().iter().map(|name| classes.iter().position(|c| c == name)).collect();
        let (mut numbers, mut unlabelled, mut foreign) = (Vec::with_capacity(source.len()), Vec::new(), Vec::new());
        for i in 0..source.len() {
            match source.label(i).map(|l| (l, index.get(l).copied().flatten())) {
                Some((_, Some(number))) => numbers.push(number),
                Some((label, None)) => foreign.push(label),
                None => unlabelled.push(i),
            }
        }
        if let Some(&first) = unlabelled.first() {
            let what = format!(
                "{} of {} images have no class, such as {}",
                unlabelled.len(),
                source.len(),
                source.name(first)
            );
            return Err(labels(path, what, NO_CLASS));
        }
        foreign.sort_unstable();
        foreign.dedup();
        if !foreign.is_empty() {
            let unknown: Vec<String> = foreign
                .iter()
                .map(|&l| source.class_names().get(l).cloned().unwrap_or_else(|| l.to_string()))
                .collect();
            let what =
                format!("there are no classes {} among the {}: {}", list(&unknown), classes.len(), list(classes));
            return Err(labels(path, what, FOREIGN));
        }
        Ok(Self { source, path: path.to_owned(), labels: numbers, classes: classes.to_vec() })
    }

    /// Images of each class.
    #[must_use]
    pub fn counts(&self) -> Vec<usize> {
        let mut counts = vec![0; self.classes.len()];
        self.labels.iter().for_each(|&l| counts[l] += 1);
        counts
    }

    /// Names of the classes without a single image.
    #[must_use]
    pub fn absent(&self) -> Vec<String> {
        self.counts().iter().zip(&self.classes).filter(|(n, _)| **n == 0).map(|(_, name)| name.clone()).collect()
    }

    /// The same, or an error where a class has no image.
    ///
    /// # Errors
    /// [`DataError::Labels`].
    pub fn complete(self) -> Result<Self, DataError> {
        let absent = self.absent();
        if absent.is_empty() {
            return Ok(self);
        }
        let help =
            "every class of the training images is measured: add images of these, or take the classes out there too";
        Err(labels(&self.path, format!("there is no image of {}", list(&absent)), help))
    }

    /// The class of every image, an index into the names.
    #[must_use]
    pub fn labels(&self) -> &[usize] {
        &self.labels
    }

    /// Some images, spread evenly over the source; all where there are no more than `count`, or `count` is 0.
    #[must_use]
    pub fn spread(&self, count: usize) -> Vec<usize> {
        let len = self.labels.len();
        let count = if count == 0 { len } else { count.min(len) };
        // u128 keeps the product exact for any length.
        (0..count).map(|i| (i as u128 * len as u128 / count as u128) as usize).collect()
    }

    /// A share of the images, the same share of every class (rounded to whole images): a pure function of its arguments.
    ///
    /// # Errors
    /// [`DataError::Labels`] where a class is left without an image.
    pub fn balanced(&self, share: f64, seed: u64) -> Result<Vec<usize>, DataError> {
        let mut chosen = Vec::new();
        for (class, name) in self.classes.iter().enumerate() {
            let mut members: Vec<usize> = (0..self.labels.len()).filter(|&i| self.labels[i] == class).collect();
            let count = (members.len() as f64 * share).round() as usize;
            if count == 0 {
                let what =
                    format!("a share of {share} of {} images leaves the class `{name}` without one", members.len());
                return Err(labels(&self.path, what, "take a larger share, or give more images of that class"));
            }
            Stream::new(seed, Purpose::Labels, 0, class as u64).shuffle(&mut members);
            chosen.extend(members.into_iter().take(count));
        }
        chosen.sort_unstable();
        Ok(chosen)
    }
}

fn labels(path: &Path, what: impl Into<String>, help: &'static str) -> DataError {
    DataError::Labels { path: path.to_owned(), what: what.into(), help }
}

/// The first names of a list, with how many more there are.
fn list(names: &[String]) -> String {
    let shown: Vec<String> = names.iter().take(NAMED).map(|n| format!("`{n}`")).collect();
    let more = names.len().saturating_sub(NAMED);
    if more > 0 { format!("{} and {more} more", shown.join(", ")) } else { shown.join(", ") }
}

impl Source for LabelledSource {
    fn len(&self) -> usize {
        self.labels.len()
    }

    fn name(&self, index: usize) -> String {
        self.source.name(index)
    }

    fn label(&self, index: usize) -> Option<usize> {
        self.labels.get(index).copied()
    }

    fn class_names(&self) -> &[String] {
        &self.classes
    }

    fn file(&self, index: usize, path: &mut PathBuf) -> Result<bool, DataError> {
        element(&self.labels, index)?;
        self.source.file(index, path)
    }

    fn passed_over(&self) -> Vec<String> {
        self.source.passed_over()
    }

    fn load(&self, index: usize, channels: Channels) -> Result<Image, DataError> {
        element(&self.labels, index)?;
        self.source.load(index, channels)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Subset, demo, demo_held_out};

    fn subset(indices: Vec<usize>) -> Arc<dyn Source> {
        Arc::new(Subset::new(Arc::new(demo().unwrap()), indices).unwrap())
    }

    #[test]
    fn a_balanced_share_has_the_same_part_of_every_class() {
        let all = LabelledSource::new(Arc::new(demo().unwrap()), Path::new("demo")).unwrap();
        let chosen = all.balanced(0.01, 3).unwrap();
        assert_eq!(chosen.len(), 60);
        let part = LabelledSource::new(subset(chosen.clone()), Path::new("demo")).unwrap();
        assert_eq!(part.counts(), [6; 10]);
        assert_eq!(all.balanced(0.01, 3).unwrap(), chosen);
        assert_ne!(all.balanced(0.01, 4).unwrap(), chosen);
        assert_eq!(all.balanced(1.0, 0).unwrap().len(), 6000);
        let error = all.balanced(0.0005, 0).unwrap_err().to_string();
        assert!(error.contains("leaves the class `t-shirt or top` without one"), "{error}");
    }

    #[test]
    fn labels_are_matched_by_name_and_differences_are_named() {
        let held_out: Arc<dyn Source> = Arc::new(demo_held_out().unwrap());
        let turned: Vec<String> = held_out.class_names().iter().rev().cloned().collect();
        let labelled = LabelledSource::with_classes(Arc::clone(&held_out), Path::new("val"), &turned).unwrap();
        assert!((0..50).all(|i| labelled.label(i).unwrap() == 9 - held_out.label(i).unwrap()));
        let error = LabelledSource::with_classes(held_out, Path::new("val"), &turned[1..]).unwrap_err();
        assert!(error.to_string().contains("`val`: there are no classes `ankle boot` among the 9"), "{error}");
        assert_eq!(error.help().unwrap(), FOREIGN);
    }

    #[test]
    fn one_class_and_missing_classes_are_refused() {
        let all = demo().unwrap();
        let of = |wanted: usize| (0..6000).filter(|&i| all.label(i) == Some(wanted)).take(5).collect::<Vec<_>>();
        let error = LabelledSource::new(subset(of(4)), Path::new("x")).unwrap_err();
        assert!(error.to_string().contains("one class, `coat`"), "{error}");
        assert!(error.help().unwrap().contains("two classes or more"));
        let two = LabelledSource::new(subset([of(4), of(1)].concat()), Path::new("x")).unwrap();
        assert_eq!(two.class_names(), ["trouser", "coat"]);
        let part = LabelledSource::with_classes(subset(of(4)), Path::new("x"), two.class_names()).unwrap();
        assert_eq!(part.absent(), ["trouser"]);
        assert!(part.complete().unwrap_err().to_string().contains("no image of `trouser`"));
    }
}
