//! LabelledSet images for training and validation, with their classes matched by name.

use crate::error::TrainError;
use simmim_data::Source;
use simmim_random::{Purpose, Stream};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Images with classes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LabelledSet {
    /// Indices into the source of the images that have a class.
    pub images: Vec<usize>,
    /// Class of each, an index into [`LabelledSets::classes`].
    pub labels: Vec<usize>,
}

/// Labelled images for training and validation, with matched classes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelledSets {
    /// Names of the classes that the training images show.
    pub classes: Vec<String>,
    /// Training images.
    pub train: LabelledSet,
    /// Validation images.
    pub val: LabelledSet,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// Name of the class of each image that has one.
fn named(source: &dyn Source) -> Vec<(usize, &str)> {
    let names = source.class_names();
    (0..source.len()).filter_map(|i| Some((i, names.get(source.label(i)?)?.as_str()))).collect()
}

pub(super) fn input(what: String, help: &str) -> TrainError {
    TrainError::Input { what, help: help.into() }
}

fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    const SHOWN: usize = 8;
    let names: Vec<&str> = names.collect();
    let more = if names.len() > SHOWN { format!(" and {} more", names.len() - SHOWN) } else { String::new() };
    format!("{}{more}", names[..names.len().min(SHOWN)].join(", "))
}

impl LabelledSets {
    /// Matches the classes of both by their names. `paths` name the sources in messages; an embedded set has none.
    ///
    /// # Errors
    /// [`TrainError::Input`] for images without classes, a single class, and validation images of a class that no training image
    /// shows.
    pub fn new(
        train: &dyn Source,
        val: &dyn Source,
        (train_path, val_path): (Option<&Path>, Option<&Path>),
    ) -> Result<Self, TrainError> {
        let place = |path: Option<&Path>| path.map_or("the demo set".to_owned(), |p| p.display().to_string());
        let (train_place, val_place) = (place(train_path), place(val_path));
        let (a, b) = (named(train), named(val));
        for (found, place) in [(&a, &train_place), (&b, &val_place)] {
            if found.is_empty() {
                return Err(input(
                    format!("{place}: the images have no classes"),
                    "use a folder with one folder per class, a list with labels, or IDX files with label files beside them",
                ));
            }
        }
        let known: BTreeSet<&str> = a.iter().map(|(_, name)| *name).collect();
        let seen: BTreeSet<&str> = b.iter().map(|(_, name)| *name).collect();
        if known.len() < 2 {
            return Err(input(
                format!("{train_place}: all images have the same class, {}", list(known.iter().copied())),
                "add images of at least one other class",
            ));
        }
        let unknown: Vec<&str> = seen.difference(&known).copied().collect();
        if !unknown.is_empty() {
            return Err(input(
                format!(
                    "{val_place} has classes that {train_place} lacks: {} (it has {})",
                    list(unknown.into_iter()),
                    list(known.iter().copied())
                ),
                "classes are matched by name (in folders, the first level): rename or remove them",
            ));
        }
        let mut warnings = Vec::new();
        let absent: Vec<&str> = known.difference(&seen).copied().collect();
        if !absent.is_empty() {
            let names = list(absent.iter().copied());
            warnings.push(format!("{val_place} has no images of these classes: {names}"));
        }
        for (source, found, place) in [(train, &a, &train_place), (val, &b, &val_place)] {
            if found.len() < source.len() {
                warnings.push(format!(
                    "{place}: {} of {} images have no class and are skipped",
                    source.len() - found.len(),
                    source.len()
                ));
            }
        }
        if same(train_path, val_path) {
            warnings.push(format!(
                "{val_place} is used for training and validation: the accuracy says nothing about new images"
            ));
        }
        // The source's order of classes: numbers stay in the order of numbers.
        let order: Vec<&str> = train.class_names().iter().map(String::as_str).filter(|n| known.contains(n)).collect();
        let number: BTreeMap<&str, usize> = order.iter().enumerate().map(|(i, &name)| (name, i)).collect();
        let labelled = |found: &[(usize, &str)]| LabelledSet {
            images: found.iter().map(|(i, _)| *i).collect(),
            labels: found.iter().map(|(_, name)| number[name]).collect(),
        };
        let (train, val) = (labelled(&a), labelled(&b));
        Ok(Self { train, val, classes: order.into_iter().map(str::to_owned).collect(), warnings })
    }
}

/// Whether two paths name one place.
fn same(a: Option<&Path>, b: Option<&Path>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => a.canonicalize().ok().is_some_and(|a| b.canonicalize().is_ok_and(|b| a == b)),
        _ => false,
    }
}

impl LabelledSet {
    /// At most `most` images, in the proportions of the classes, spread evenly over each.
    #[must_use]
    pub fn thinned(&self, most: usize) -> Self {
        if self.images.len() <= most {
            return self.clone();
        }
        let mut order: Vec<usize> = (0..self.images.len()).collect();
        order.sort_by_key(|&i| (self.labels[i], i));
        let chosen: Vec<usize> = (0..most).map(|i| order[i * order.len() / most]).collect();
        Self {
            images: chosen.iter().map(|&i| self.images[i]).collect(),
            labels: chosen.iter().map(|&i| self.labels[i]).collect(),
        }
    }
}

/// A split of rows: places to fit on and places to choose by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    /// Places to fit on.
    pub fit: Vec<usize>,
    /// Places to choose by.
    pub check: Vec<usize>,
}

/// Most images to choose by: more would only cost time.
pub(super) const CHECKED: usize = 10_000;

/// Puts a fifth of each class aside to choose by, at random: a pure function of labels and seed.
///
/// # Errors
/// [`TrainError::Input`] where no class has two images.
pub fn split(labels: &[usize], classes: usize, seed: u64) -> Result<Split, TrainError> {
    let mut places = vec![Vec::new(); classes];
    labels.iter().enumerate().for_each(|(place, &label)| places[label].push(place));
    let most = CHECKED as f64 / labels.len().max(1) as f64;
    let (mut fit, mut check) = (Vec::new(), Vec::new());
    for (class, mut places) in places.into_iter().enumerate() {
        Stream::new(seed, Purpose::Split, 1, class as u64).shuffle(&mut places);
        // A class of one image is fitted on; of two or more, at least one is held out.
        let aside = (places.len() as f64 * most.min(0.2)).round() as usize;
        let aside = aside.max(usize::from(places.len() > 1));
        fit.extend(places.split_off(aside));
        check.extend(places);
    }
    if check.is_empty() {
        return Err(input(
            "every class has only one training image".into(),
            "add images: at least one class needs two, one to fit on and one to select with",
        ));
    }
    fit.sort_unstable();
    check.sort_unstable();
    Ok(Split { fit, check })
}

/// Number of held-out images from which one split is stable enough to select by.
pub(super) const STEADY: usize = 500;
/// Splits of fewer images.
pub(super) const FOLDS: usize = 5;

/// Splits to choose by: one ([`split`]) where it puts 500 images aside, otherwise five, in which every image of a class of two or more
/// is held out once. A pure function of labels and seed.
///
/// # Errors
/// As [`split`].
pub fn folds(labels: &[usize], classes: usize, seed: u64) -> Result<Vec<Split>, TrainError> {
    let first = split(labels, classes, seed)?;
    if first.check.len() >= STEADY {
        return Ok(vec![first]);
    }
    let mut places = vec![Vec::new(); classes];
    labels.iter().enumerate().for_each(|(place, &label)| places[label].push(place));
    for (class, places) in places.iter_mut().enumerate() {
        Stream::new(seed, Purpose::Split, 2, class as u64).shuffle(places);
    }
    let fold = |f: usize| {
        let (mut fit, mut check) = (Vec::new(), Vec::new());
        for places in &places {
            let aside = if places.len() > 1 { places.len() * f / FOLDS..places.len() * (f + 1) / FOLDS } else { 0..0 };
            check.extend_from_slice(&places[aside.clone()]);
            fit.extend(places[..aside.start].iter().chain(&places[aside.end..]));
        }
        fit.sort_unstable();
        check.sort_unstable();
        Split { fit, check }
    };
    Ok((0..FOLDS).map(fold).filter(|split| !split.check.is_empty()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use simmim_data::{DataError, Image};

    /// Images without pixels, with classes.
    struct Names(Vec<Option<usize>>, Vec<String>);

    impl Names {
        fn new(labels: &[&str], names: &[&str]) -> Self {
            let place = |l: &&str| names.iter().position(|n| n == l);
            Self(labels.iter().map(place).collect(), names.iter().map(|&n| n.to_owned()).collect())
        }
    }

    impl Source for Names {
        fn len(&self) -> usize {
            self.0.len()
        }
        fn name(&self, index: usize) -> String {
            index.to_string()
        }
        fn label(&self, index: usize) -> Option<usize> {
            self.0[index]
        }
        fn class_names(&self) -> &[String] {
            &self.1
        }
        fn load(&self, index: usize, _: simmim_data::Channels) -> Result<Image, DataError> {
            Err(DataError::OutOfRange { index, len: 0 })
        }
    }

    fn task(train: &Names, val: &Names) -> Result<LabelledSets, String> {
        LabelledSets::new(train, val, (Some(Path::new("train")), Some(Path::new("val")))).map_err(|e| e.to_string())
    }

    #[test]
    fn classes_are_matched_by_name_not_by_number() {
        let train = Names::new(&["dog", "ant", "-", "cat", "dog"], &["ant", "bee", "cat", "dog"]);
        let val = Names::new(&["dog", "cat", "dog"], &["cat", "dog"]);
        let task = task(&train, &val).unwrap();
        assert_eq!(task.classes, ["ant", "cat", "dog"]);
        assert_eq!(task.train, LabelledSet { images: vec![0, 1, 3, 4], labels: vec![2, 0, 1, 2] });
        assert_eq!(task.val, LabelledSet { images: vec![0, 1, 2], labels: vec![2, 1, 2] });
        assert!(task.warnings[0].contains("val has no images of these classes: ant"), "{:?}", task.warnings);
        assert!(task.warnings[1].contains("train: 1 of 5 images have no class"), "{:?}", task.warnings);
    }

    #[test]
    fn what_cannot_be_told_apart_is_refused_with_the_names() {
        let good = Names::new(&["a", "b"], &["a", "b"]);
        for (train, val, message) in [
            (&good, &Names::new(&["a", "x"], &["a", "x"]), "val has classes that train lacks: x (it has a, b)"),
            (&good, &Names::new(&["-"], &[]), "val: the images have no classes"),
            (&Names::new(&["-"], &[]), &good, "train: the images have no classes"),
            (&Names::new(&["a", "a"], &["a", "b"]), &good, "train: all images have the same class, a"),
        ] {
            let error = task(train, val).unwrap_err();
            assert!(error.contains(message), "{error}");
        }
    }

    #[test]
    fn a_split_takes_a_fifth_of_each_class_and_never_the_last_image() {
        let labels: Vec<usize> = (0..103)
            .map(|i| {
                if i < 50 {
                    0
                } else if i < 100 {
                    1
                } else {
                    i - 98
                }
            })
            .collect();
        let parts = split(&labels, 5, 7).unwrap();
        assert_eq!(parts, split(&labels, 5, 7).unwrap());
        assert_ne!(parts, split(&labels, 5, 8).unwrap());
        let count = |places: &[usize], class: usize| places.iter().filter(|&&p| labels[p] == class).count();
        let checked: Vec<usize> = (0..5).map(|class| count(&parts.check, class)).collect();
        assert_eq!(checked, [10, 10, 0, 0, 0]);
        let mut all = [parts.fit, parts.check].concat();
        all.sort_unstable();
        assert_eq!(all, (0..103).collect::<Vec<_>>());
        assert_eq!(split(&[0, 0, 1], 2, 0).unwrap().check.len(), 1);
        assert!(split(&[0, 1], 2, 0).is_err());
    }

    #[test]
    fn folds_of_few_images_hold_out_each_once_and_always_leave_one_of_its_class() {
        let labels = [0, 0, 0, 0, 0, 0, 0, 1, 1, 2];
        let parts = folds(&labels, 3, 1).unwrap();
        assert_eq!(parts, folds(&labels, 3, 1).unwrap());
        let mut aside: Vec<usize> = parts.iter().flat_map(|p| p.check.clone()).collect();
        aside.sort_unstable();
        assert_eq!(aside, (0..9).collect::<Vec<_>>(), "the only image of a class is always fitted on");
        for part in &parts {
            assert!((0..3).all(|class| part.fit.iter().any(|&p| labels[p] == class)), "{part:?}");
            assert_eq!(part.fit.len() + part.check.len(), 10);
        }
        assert!(folds(&[0, 1], 2, 0).is_err());
        let many: Vec<usize> = (0..2500).map(|i| i % 2).collect();
        assert_eq!(folds(&many, 2, 3).unwrap(), [split(&many, 2, 3).unwrap()]);
        assert_eq!(folds(&many[..2400], 2, 3).unwrap().len(), 5);
    }

    #[test]
    fn thinning_keeps_the_proportions() {
        let labels: Vec<usize> = (0..100).map(|i| usize::from(i % 4 == 0)).collect();
        let thin = LabelledSet { images: (0..100).collect(), labels }.thinned(20);
        assert_eq!((thin.images.len(), thin.labels.iter().sum::<usize>()), (20, 5));
        assert_eq!(thin.thinned(50), thin);
    }
}
