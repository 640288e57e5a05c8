//! Some images that stand for all.

use std::collections::BTreeMap;

use simmim_random::{Purpose, Stream};

/// Chooses `count` of the images whose labels are given, in rising order: as many of each class as of the others, as far as there
/// are that many (images without a label count as a class), and those of a class one from each of equal stretches of the list. So
/// neighbours, which are often alike (frames of a video, crops of a photograph), are seldom chosen together. All where there are no
/// more than `count`.
///
/// A pure function of its arguments.
#[must_use]
pub fn spread(labels: &[Option<usize>], count: usize, seed: u64) -> Vec<usize> {
    if count >= labels.len() {
        return (0..labels.len()).collect();
    }
    let mut classes: BTreeMap<Option<usize>, Vec<usize>> = BTreeMap::new();
    for (i, &label) in labels.iter().enumerate() {
        classes.entry(label).or_default().push(i);
    }
    let classes: Vec<Vec<usize>> = classes.into_values().collect();
    // Where classes cannot all have the same number, chance says which get one more.
    let mut turns: Vec<usize> = (0..classes.len()).collect();
    let mut stream = Stream::new(seed, Purpose::Spread, 0, 0);
    stream.shuffle(&mut turns);
    let mut shares = vec![0; classes.len()];
    let mut left = count;
    while left > 0 {
        for &class in &turns {
            if left > 0 && shares[class] < classes[class].len() {
                shares[class] += 1;
                left -= 1;
            }
        }
    }
    let mut chosen: Vec<usize> = Vec::with_capacity(count);
    for (members, share) in classes.iter().zip(shares) {
        // u128 keeps the product exact for any length.
        let bound = |i: usize| (i as u128 * members.len() as u128 / share as u128) as usize;
        for i in 0..share {
            let (start, end) = (bound(i), bound(i + 1));
            chosen.push(members[start + stream.below((end - start) as u64) as usize]);
        }
    }
    chosen.sort_unstable();
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sorted_classes_are_all_there() {
        let labels: Vec<Option<usize>> = (0..10).flat_map(|class| vec![Some(class); 30]).collect();
        for seed in 0..20 {
            let chosen = spread(&labels, 12, seed);
            let mut per_class = [0; 10];
            chosen.iter().for_each(|&i| per_class[labels[i].unwrap()] += 1);
            assert!(per_class.iter().all(|n| (1..=2).contains(n)), "{per_class:?}");
            assert_eq!(chosen, spread(&labels, 12, seed));
        }
        assert_ne!(spread(&labels, 12, 0), spread(&labels, 12, 1));
    }

    #[test]
    fn small_classes_give_what_they_have() {
        let labels = [vec![Some(0); 2], vec![Some(1); 50], vec![None; 1]].concat();
        let chosen = spread(&labels, 9, 3);
        assert_eq!(chosen.iter().filter(|&&i| i < 2).count(), 2);
        assert!(chosen.contains(&52) && chosen.len() == 9);
    }

    #[test]
    fn without_labels_every_stretch_gives_one() {
        for seed in 0..20 {
            let chosen = spread(&[None; 103], 8, seed);
            for (i, &image) in chosen.iter().enumerate() {
                assert!((i * 103 / 8..(i + 1) * 103 / 8).contains(&image), "{chosen:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn it_is_a_rising_choice_of_the_right_size(
            labels in proptest::collection::vec(proptest::option::of(0usize..5), 0..60), count in 0usize..70, seed: u64,
        ) {
            let chosen = spread(&labels, count, seed);
            prop_assert_eq!(chosen.len(), count.min(labels.len()));
            prop_assert!(chosen.is_sorted_by(|a, b| a < b));
            prop_assert!(chosen.iter().all(|&i| i < labels.len()));
        }
    }
}
