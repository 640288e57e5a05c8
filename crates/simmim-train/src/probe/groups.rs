//! Splits by identity: images that belong together stay on one side.

use super::labels::{CHECKED, FOLDS, STEADY, Split, input};
use crate::error::TrainError;
use simmim_random::{Purpose, Stream};
use std::collections::BTreeMap;

/// The images of a group, by class.
#[derive(Debug, Default, Clone)]
struct Group {
    places: Vec<usize>,
    /// Class and number of images, ascending.
    classes: Vec<(usize, usize)>,
}

/// As [`super::folds`], with all images of a group on one side: `groups` gives each image's. Groups are dealt to five parts of about the
/// same size in every class; where the first holds 500 images it is the only one that is held out, of which 10,000 at most are looked at.
/// A class always keeps images to be fitted on, so that of a class of one group nothing is held out. A pure function of labels, groups and
/// seed.
///
/// # Errors
/// [`TrainError::Input`] where no class has two groups.
pub fn group_folds(labels: &[usize], groups: &[usize], classes: usize, seed: u64) -> Result<Vec<Split>, TrainError> {
    let groups = gathered(labels, groups, seed);
    let dealt = deal(&groups, labels, classes);
    let mut folds: Vec<Split> = Vec::new();
    for fold in 0..FOLDS {
        let aside = held_out(&groups, &dealt, fold, classes);
        let places = |wanted: bool| {
            let chosen = groups.iter().zip(&aside).filter(|(_, aside)| **aside == wanted);
            let mut places: Vec<usize> = chosen.flat_map(|(group, _)| group.places.iter().copied()).collect();
            places.sort_unstable();
            places
        };
        let (fit, check) = (places(false), places(true));
        if check.len() >= STEADY {
            let most = check.len().min(CHECKED);
            let check = (0..most).map(|i| check[i * check.len() / most]).collect();
            return Ok(vec![Split { fit, check }]);
        }
        if !check.is_empty() {
            folds.push(Split { fit, check });
        }
    }
    if folds.is_empty() {
        return Err(input(
            "all training images of each class are of one group: nothing can be held out".into(),
            "name groups of which a class has several, such as the object, the photograph or the patient of an image",
        ));
    }
    Ok(folds)
}

/// The groups in a random order, large ones first: those are the hardest to place.
fn gathered(labels: &[usize], groups: &[usize], seed: u64) -> Vec<Group> {
    let mut known: BTreeMap<usize, Group> = BTreeMap::new();
    for (place, (&label, &group)) in labels.iter().zip(groups).enumerate() {
        let group = known.entry(group).or_default();
        group.places.push(place);
        match group.classes.binary_search_by_key(&label, |c| c.0) {
            Ok(at) => group.classes[at].1 += 1,
            Err(at) => group.classes.insert(at, (label, 1)),
        }
    }
    let mut all: Vec<Group> = known.into_values().collect();
    Stream::new(seed, Purpose::Split, 3, 0).shuffle(&mut all);
    all.sort_by_key(|group| std::cmp::Reverse(group.places.len()));
    all
}

/// The fold of each group: the one that has the smallest share of the group's classes so far.
fn deal(groups: &[Group], labels: &[usize], classes: usize) -> Vec<usize> {
    let mut totals = vec![0; classes];
    labels.iter().for_each(|&label| totals[label] += 1);
    let mut seen = vec![[0usize; FOLDS]; classes];
    let mut sizes = [0; FOLDS];
    let mut dealt = Vec::new();
    for group in groups {
        let share = |fold: usize| -> f64 {
            let of = |&(class, count): &(usize, usize)| (seen[class][fold] + count) as f64 / totals[class] as f64;
            group.classes.iter().map(of).sum()
        };
        let mut best = 0;
        for fold in 1..FOLDS {
            let better = share(fold).total_cmp(&share(best)).then(sizes[fold].cmp(&sizes[best]));
            best = if better.is_lt() { fold } else { best };
        }
        group.classes.iter().for_each(|&(class, count)| seen[class][best] += count);
        sizes[best] += group.places.len();
        dealt.push(best);
    }
    dealt
}

/// Which groups of a fold are held out: all, but of a class that would have no image left the first.
fn held_out(groups: &[Group], dealt: &[usize], fold: usize, classes: usize) -> Vec<bool> {
    let mut left = vec![0; classes];
    for (group, _) in groups.iter().zip(dealt).filter(|(_, dealt)| **dealt != fold) {
        group.classes.iter().for_each(|&(class, count)| left[class] += count);
    }
    let mut aside: Vec<bool> = dealt.iter().map(|dealt| *dealt == fold).collect();
    for (group, aside) in groups.iter().zip(&mut aside).filter(|(_, aside)| **aside) {
        if group.classes.iter().any(|&(class, _)| left[class] == 0) {
            group.classes.iter().for_each(|&(class, count)| left[class] += count);
            *aside = false;
        }
    }
    aside
}

/// A text that differs for other groups of the same images.
#[must_use]
pub fn fingerprint(groups: &[usize]) -> String {
    let mut hash = blake3::Hasher::new();
    groups.iter().for_each(|&group| {
        hash.update(&(group as u64).to_le_bytes());
    });
    hash.finalize().to_hex()[..16].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// Every group on one side, every image on at most one, classes kept for the fit.
    fn check(labels: &[usize], groups: &[usize], classes: usize, parts: &[Split]) {
        for part in parts {
            let of = |places: &[usize]| places.iter().map(|&p| groups[p]).collect::<BTreeSet<_>>();
            assert!(of(&part.fit).is_disjoint(&of(&part.check)), "{part:?}");
            assert!((0..classes).all(|class| part.fit.iter().any(|&p| labels[p] == class)), "{part:?}");
        }
    }

    #[test]
    fn groups_stay_together_and_folds_are_alike() {
        // Two classes of a hundred groups of 2 to 4 images, and a third class of one group.
        let mut images: Vec<(usize, usize)> = Vec::new();
        for group in 0..200 {
            (0..2 + group % 3).for_each(|_| images.push((group % 2, group)));
        }
        images.extend([(2, 200); 5]);
        let (labels, groups): (Vec<usize>, Vec<usize>) = images.into_iter().unzip();
        let parts = group_folds(&labels, &groups, 3, 7).unwrap();
        assert_eq!(parts, group_folds(&labels, &groups, 3, 7).unwrap());
        assert_ne!(parts, group_folds(&labels, &groups, 3, 8).unwrap());
        assert_eq!(parts.len(), 5);
        check(&labels, &groups, 3, &parts);
        let mut aside: Vec<usize> = parts.iter().flat_map(|p| p.check.clone()).collect();
        aside.sort_unstable();
        let expected: Vec<usize> = (0..labels.len()).filter(|&p| labels[p] < 2).collect();
        assert_eq!(aside, expected, "every image of a class of several groups is held out once");
        for part in &parts {
            for class in 0..2 {
                let count = part.check.iter().filter(|&&p| labels[p] == class).count();
                assert!((55..=65).contains(&count), "{count} of about 60");
            }
        }
    }

    #[test]
    fn a_group_may_hold_several_classes_and_many_images_need_one_split() {
        let labels: Vec<usize> = (0..60_000).map(|i| i % 5).collect();
        let groups: Vec<usize> = (0..60_000).map(|i| i / 20).collect();
        let parts = group_folds(&labels, &groups, 5, 0).unwrap();
        check(&labels, &groups, 5, &parts);
        assert_eq!((parts.len(), parts[0].check.len(), parts[0].fit.len()), (1, 10_000, 48_000));
    }

    #[test]
    fn groups_that_leave_nothing_to_hold_out_are_refused() {
        let error = group_folds(&[0, 0, 1, 1], &[0, 0, 1, 1], 2, 0).unwrap_err();
        assert!(error.to_string().contains("of one group"), "{error}");
        let parts = group_folds(&[0, 0, 1, 1], &[0, 1, 2, 2], 2, 0).unwrap();
        check(&[0, 0, 1, 1], &[0, 1, 2, 2], 2, &parts);
        assert_ne!(fingerprint(&[0, 1, 2, 2]), fingerprint(&[0, 1, 2, 3]));
    }
}
