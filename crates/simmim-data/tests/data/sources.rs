//! Folders, lists, IDX files, the demonstration set, subsets and splits.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use simmim_data::source::{Subset, open};
use simmim_data::{DataError, Pixels, Source, demo, demo_held_out, mean_std, split};

use crate::{encode, encode_png, folder_of, pattern};

fn names(source: &dyn Source) -> Vec<String> {
    (0..source.len()).map(|i| source.name(i)).collect()
}

fn fails(path: &Path) -> DataError {
    match open(path) {
        Ok(source) => panic!("opened {} with {} images", path.display(), source.len()),
        Err(error) => error,
    }
}

#[test]
fn folders_are_sorted_labelled_and_mixed() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, format| {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, encode(&pattern(5, 4, 3, 1), format)).unwrap();
    };
    use image::ImageFormat::{Bmp, Gif, Jpeg, Png, Tiff, WebP};
    write("dogs/deep/er/a.JPEG", Jpeg);
    write("cats/b.webp", WebP);
    write("cats/c.bmp", Bmp);
    write("dogs/d.gif", Gif);
    write("dogs/wrong-extension.png", Tiff);
    write("top.png", Png);
    write("no-extension", Png);
    write(".hidden.png", Png);
    write(".cache/e.png", Png);
    std::fs::write(folder.path().join("notes.md"), "not an image").unwrap();
    std::fs::write(folder.path().join("text"), "not an image").unwrap();
    let source = open(folder.path()).unwrap();
    let expected = [
        "cats/b.webp",
        "cats/c.bmp",
        "dogs/d.gif",
        "dogs/deep/er/a.JPEG",
        "dogs/wrong-extension.png",
        "no-extension",
        "top.png",
    ];
    assert_eq!(names(&*source), expected);
    assert_eq!(source.class_names(), ["cats", "dogs"]);
    let labels: Vec<_> = (0..7).map(|i| source.label(i)).collect();
    assert_eq!(labels, [Some(0), Some(0), Some(1), Some(1), Some(1), None, None]);
    for i in 0..source.len() {
        assert_eq!(source.load(i, 3.into()).unwrap().width, 5, "{}", source.name(i));
    }
    assert!(matches!(source.load(7, 3.into()), Err(DataError::OutOfRange { index: 7, len: 7 })));
}

#[cfg(unix)]
#[test]
fn links_are_followed_but_not_in_circles() {
    let folder = folder_of(1);
    let outside = folder_of(2);
    std::os::unix::fs::symlink(outside.path(), folder.path().join("linked")).unwrap();
    std::os::unix::fs::symlink(folder.path(), folder.path().join("circle")).unwrap();
    std::os::unix::fs::symlink("nowhere", folder.path().join("dangling.d")).unwrap();
    assert_eq!(names(&*open(folder.path()).unwrap()), ["000.png", "linked/000.png", "linked/001.png"]);
}

#[test]
fn runs_among_the_images_are_passed_over() {
    let folder = folder_of(2);
    let picture = std::fs::read(folder.path().join("000.png")).unwrap();
    let write = |name: &str, content: &[u8]| {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    };
    for (run, sign) in [("locked", ".lock"), ("deep/er/logged", "metrics.jsonl"), ("saved", "checkpoints/latest")] {
        write(&format!("{run}/config.toml"), b"");
        write(&format!("{run}/{sign}"), b"");
        write(&format!("{run}/reconstructions/step-00000001.png"), &picture);
    }
    // A recipe or metrics alone are no run.
    write("recipe/config.toml", b"");
    write("recipe/a.png", &picture);
    write("metrics/metrics.jsonl", b"");
    write("metrics/b.png", &picture);
    let source = open(folder.path()).unwrap();
    assert_eq!(names(&*source), ["000.png", "001.png", "metrics/b.png", "recipe/a.png"]);
    assert_eq!(source.class_names(), ["metrics", "recipe"]);
    let runs = ["deep/er/logged", "locked", "saved"];
    assert_eq!(source.passed_over(), runs);
    assert_eq!(Subset::new(source.into(), vec![1]).unwrap().passed_over(), runs);

    let error = fails(&folder.path().join("locked"));
    assert!(
        error.to_string().contains("holds a run") && error.help().unwrap().contains("`reconstructions`"),
        "{error}"
    );
    assert_eq!(open(&folder.path().join("locked/reconstructions")).unwrap().len(), 1);
}

#[test]
fn wrong_places_are_explained() {
    let folder = tempfile::tempdir().unwrap();
    let missing = fails(&folder.path().join("nowhere"));
    assert!(matches!(missing, DataError::Missing { .. }), "{missing}");
    let empty = fails(folder.path());
    assert!(matches!(empty, DataError::NoImages { files: 0, .. }), "{empty}");
    std::fs::write(folder.path().join("notes.md"), "x").unwrap();
    let none = fails(folder.path());
    assert!(matches!(none, DataError::NoImages { files: 1, .. }), "{none}");
    assert!(none.to_string().contains("1 other files") && none.help().unwrap().contains("JPEG"));
    let other = fails(&folder.path().join("notes.md"));
    assert!(matches!(other, DataError::UnknownSource { .. }), "{other}");
    for error in [missing, empty, none, other] {
        let text = error.to_string();
        assert!(!text.ends_with('.') && error.help().is_some() && error.path().is_some(), "{text}");
    }
}

#[test]
fn one_image_is_a_source() {
    let folder = folder_of(3);
    let source = open(&folder.path().join("001.png")).unwrap();
    assert_eq!(names(&*source), ["001.png"]);
    assert_eq!(source.load(0, 1.into()).unwrap().channels, 1);
}

#[test]
fn lists_take_labels_headers_and_commas() {
    let folder = folder_of(3);
    std::fs::copy(folder.path().join("000.png"), folder.path().join("a,b.png")).unwrap();
    let check = |name: &str, text: &str, files: &[&str], labels: &[Option<usize>], classes: &[&str]| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        let source = open(&path).unwrap();
        assert_eq!(names(&*source), files, "{name}");
        assert_eq!((0..source.len()).map(|i| source.label(i)).collect::<Vec<_>>(), labels, "{name}");
        assert_eq!(source.class_names(), classes, "{name}");
        assert!((0..source.len()).all(|i| source.load(i, 3.into()).is_ok()));
    };
    check("plain.txt", "# comment\n000.png\n\n a,b.png \r\n", &["000.png", "a,b.png"], &[None, None], &[]);
    check(
        "named.tsv",
        "000.png\tzebra\n001.png\tant\n",
        &["000.png", "001.png"],
        &[Some(1), Some(0)],
        &["ant", "zebra"],
    );
    check(
        "numbers.csv",
        "path,label\n001.png,2\n000.png,0\n",
        &["001.png", "000.png"],
        &[Some(2), Some(0)],
        &["0", "1", "2"],
    );
    check("quoted.csv", "\u{feff}\"a,b.png\",x\n\"a,b.png\"\n", &["a,b.png", "a,b.png"], &[Some(0), None], &["x"]);
    check("comma.txt", "001.png,cat\n002.png\n", &["001.png", "002.png"], &[Some(0), None], &["cat"]);

    let path = folder.path().join("bad.txt");
    std::fs::write(&path, "nowhere.png\n").unwrap();
    assert!(matches!(fails(&path), DataError::List { line: 1, .. }));
    std::fs::write(&path, b"000.png\n\xff\xfe\n").unwrap();
    assert!(matches!(fails(&path), DataError::List { line: 2, .. }));
    std::fs::write(&path, "\n# nothing\n").unwrap();
    assert!(matches!(fails(&path), DataError::NoImages { .. }));
}

/// An IDX file of unsigned bytes.
fn idx(dims: &[u32], data: &[u8]) -> Vec<u8> {
    let mut file = vec![0, 0, 8, dims.len() as u8];
    dims.iter().for_each(|d| file.extend(d.to_be_bytes()));
    file.extend(data);
    file
}

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn idx_folders_are_recognised() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, data: Vec<u8>| std::fs::write(folder.path().join(name), data).unwrap();
    write("t10k-images-idx3-ubyte.gz", gzip(&idx(&[1, 2, 3], &[9; 6])));
    write("train-images-idx3-ubyte", idx(&[2, 2, 3], &(0..12).collect::<Vec<_>>()));
    write("train-labels-idx1-ubyte.gz", gzip(&idx(&[2], &[4, 1])));
    let train = open(folder.path()).unwrap();
    assert_eq!((train.len(), train.label(0), train.label(1), train.class_names().len()), (2, Some(4), Some(1), 5));
    let image = train.load(1, 1.into()).unwrap();
    assert_eq!((image.width, image.height, image.pixels), (3, 2, Pixels::U8((6..12).collect())));
    assert_eq!(train.load(1, 3.into()).unwrap().channels, 3);
    assert_eq!(train.name(1), "train-images-idx3-ubyte#1");
    let test = open(&folder.path().join("t10k-images-idx3-ubyte.gz")).unwrap();
    assert_eq!((test.len(), test.label(0)), (1, None));
}

#[test]
fn lying_idx_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("images-idx3-ubyte");
    let whole = idx(&[2, 2, 2], &[0; 8]);
    let mut cases: Vec<(&str, Vec<u8>)> = vec![
        ("no data", idx(&[1000, 1000, 1000], &[])),
        ("overflow", idx(&[u32::MAX, u32::MAX, u32::MAX], &[])),
        ("too many dimensions", [vec![0, 0, 8, 255], vec![0xff; 1020]].concat()),
        ("too much data", idx(&[1, 2, 2], &[0; 5])),
        ("two dimensions", idx(&[2, 2], &[0; 4])),
        ("no images", idx(&[0, 28, 28], &[])),
        ("no pixels", idx(&[5, 0, 28], &[])),
        ("claims beyond gzip's reach", gzip(&idx(&[1000, 1000, 1000], &[]))),
        ("gzipped lie", gzip(&idx(&[2, 2, 2], &[0; 7]))),
        ("gzipped surplus", gzip(&idx(&[2, 2, 2], &vec![0; 1 << 20]))),
        ("truncated gzip", gzip(&whole)[..20].to_vec()),
        ("floats", [vec![0, 0, 0x0d, 3], vec![0; 12]].concat()),
    ];
    cases.extend((0..whole.len()).map(|cut| ("truncated", whole[..cut].to_vec())));
    for (what, data) in cases {
        std::fs::write(&path, data).unwrap();
        let error = fails(&path);
        assert!(error.path().is_some(), "{what}: {error}");
        if what == "no data" {
            assert!(matches!(error, DataError::Idx { .. }), "{error}");
        }
    }
    std::fs::write(&path, &whole).unwrap();
    std::fs::write(folder.path().join("labels-idx1-ubyte"), idx(&[3], &[0; 3])).unwrap();
    let error = fails(&path);
    assert!(error.to_string().contains("one label for each of 2 images"), "{error}");
}

#[test]
fn the_demonstration_set_is_complete_and_balanced() {
    for (source, count) in [(demo().unwrap(), 6000), (demo_held_out().unwrap(), 1000)] {
        assert_eq!(source.len(), count);
        let mut per_class = [0; 10];
        (0..count).for_each(|i| per_class[source.label(i).unwrap()] += 1);
        assert_eq!(per_class, [count / 10; 10]);
        assert_eq!(source.class_names().len(), 10);
        let image = source.load(count - 1, 1.into()).unwrap();
        assert_eq!((image.width, image.height, image.channels), (28, 28, 1));
    }
    let (mean, std) = mean_std(&demo().unwrap(), 1, usize::MAX).unwrap();
    // Fashion-MNIST's known statistics: 0.2860 and 0.3530.
    assert!((mean[0] - 0.286).abs() < 0.005 && (std[0] - 0.353).abs() < 0.005, "{mean:?} {std:?}");
}

#[test]
fn statistics_leave_out_damaged_images_and_constant_channels() {
    let folder = tempfile::tempdir().unwrap();
    let mut image = pattern(2, 1, 3, 0);
    image.pixels = Pixels::U8(vec![0, 255, 51, 255, 255, 51]);
    std::fs::write(folder.path().join("a.png"), encode_png(&image)).unwrap();
    std::fs::write(folder.path().join("b.png"), "damaged").unwrap();
    let (mean, std) = mean_std(&*open(folder.path()).unwrap(), 3, 10).unwrap();
    assert_eq!((mean, std), (vec![0.5, 1.0, 0.2], vec![0.5, 1.0, 1.0]));
    std::fs::remove_file(folder.path().join("a.png")).unwrap();
    let error = mean_std(&*open(folder.path()).unwrap(), 3, 10).unwrap_err();
    assert!(matches!(error, DataError::NothingReadable { .. }) && error.to_string().contains("b.png"), "{error}");
}

#[test]
fn splits_are_disjoint_and_repeatable() {
    for (len, held_out) in [(0, 0), (1, 0), (1, 1), (10, 3), (100, 100), (5, 9)] {
        let (train, held) = split(len, held_out, 7);
        assert_eq!(held.len(), held_out.min(len));
        let mut all: Vec<usize> = train.iter().chain(&held).copied().collect();
        all.sort_unstable();
        assert_eq!(all, (0..len).collect::<Vec<_>>());
        assert_eq!(split(len, held_out, 7), (train, held));
    }
    assert_ne!(split(100, 10, 1).1, split(100, 10, 2).1);
}

#[test]
fn subsets_pass_everything_through() {
    let folder = folder_of(4);
    let all: Arc<dyn Source> = open(folder.path()).unwrap().into();
    let part = Subset::new(Arc::clone(&all), vec![3, 1]).unwrap();
    assert_eq!(names(&part), ["003.png", "001.png"]);
    assert_eq!(part.load(0, 3.into()).unwrap(), all.load(3, 3.into()).unwrap());
    assert!(part.load(2, 3.into()).is_err());
    assert!(matches!(Subset::new(all, vec![4]), Err(DataError::OutOfRange { index: 4, len: 4 })));
}
