//! Tables in parts: `embed --part` and `predict --part`.

#![allow(clippy::unwrap_used, reason = "a test may fail loudly")]

use parquet::file::reader::{FileReader, SerializedFileReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn simmim(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_simmim")).args(arguments).args(["--threads", "1"]).output().unwrap()
}

fn succeed(arguments: &[&str]) -> String {
    let output = simmim(arguments);
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {text}");
    text
}

fn refused(arguments: &[&str]) -> String {
    let output = simmim(arguments);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A run, a classifier, and a folder with nine images in two classes, one of which cannot be read.
struct Bench {
    place: tempfile::TempDir,
}

const SMALL: [&str; 14] = [
    "--set",
    "model.embed_dim=32",
    "--set",
    "model.depth=2",
    "--set",
    "model.num_heads=2",
    "--set",
    "train.batch_size=4",
    "--set",
    "validate.images=4",
    "--set",
    "reconstruct.images=1",
    "--steps",
    "1",
];

impl Bench {
    fn new() -> Self {
        let bench = Self { place: tempfile::tempdir().unwrap() };
        for i in 0..9u8 {
            let folder = bench.path("images").join(if i < 5 { "a" } else { "b" });
            std::fs::create_dir_all(&folder).unwrap();
            let file = folder.join(format!("{i}.png"));
            let image = image::GrayImage::from_fn(28, 28, |x, y| image::Luma([(x * y) as u8 ^ (i * 28)]));
            if i == 6 { std::fs::write(file, "none").unwrap() } else { image.save(file).unwrap() }
        }
        succeed(&[&["pretrain", "--out", &bench.text("run")], &SMALL[..]].concat());
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    fn embed(&self, out: &str, more: &[&str]) -> Vec<String> {
        let [run, images, out] = ["run", "images", out].map(|name| self.text(name));
        let given = ["embed", "--weights", &run, "--data", &images, "--out", &out];
        given.iter().chain(more).map(|&argument| argument.to_owned()).collect()
    }
}

fn strs(arguments: &[String]) -> Vec<&str> {
    arguments.iter().map(String::as_str).collect()
}

/// The parts of a table, in the order of their names.
fn parts(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let shown = |path: &PathBuf| !path.file_name().unwrap().to_str().unwrap().starts_with('.');
    let mut found: Vec<PathBuf> =
        entries.filter(shown).filter(|path| path.to_str().unwrap().ends_with(extension)).collect();
    found.sort();
    found
}

fn csv_rows(path: &Path) -> Vec<String> {
    std::fs::read_to_string(path).unwrap().lines().skip(1).map(str::to_owned).collect()
}

fn parquet_rows(path: &Path) -> Vec<String> {
    let reader = SerializedFileReader::new(std::fs::File::open(path).unwrap()).unwrap();
    assert_eq!(reader.metadata().file_metadata().schema().get_fields().len(), 3);
    reader.get_row_iter(None).unwrap().map(|row| row.unwrap().to_string()).collect()
}

/// The bytes of an array without its header, and the shape that the header tells.
fn npy_rows(path: &Path) -> (Vec<u8>, String) {
    let bytes = std::fs::read(path).unwrap();
    let length = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    (bytes[10 + length..].to_vec(), String::from_utf8_lossy(&bytes[10..10 + length]).into_owned())
}

#[test]
fn parts_together_are_the_whole_table_bit_for_bit() {
    let bench = Bench::new();
    for extension in ["csv", "parquet", "npy"] {
        let whole = format!("whole.{extension}");
        succeed(&strs(&bench.embed(&whole, &[])));
        for count in [1, 2, 3, 7, 11] {
            let out = format!("{count}.{extension}");
            for index in 0..count {
                succeed(&strs(&bench.embed(&out, &["--part", &format!("{index}/{count}")])));
            }
            let files = parts(&bench.path(&out), extension);
            assert_eq!(files.len(), count);
            assert!(files[0].ends_with(format!("part-00000-of-{count:05}.{extension}")));
            match extension {
                "csv" => {
                    let together: Vec<String> = files.iter().flat_map(|file| csv_rows(file)).collect();
                    assert!(together == csv_rows(&bench.path(&whole)) && together.len() == 8, "{count}");
                }
                "parquet" => {
                    let together: Vec<String> = files.iter().flat_map(|file| parquet_rows(file)).collect();
                    assert!(together == parquet_rows(&bench.path(&whole)) && together.len() == 8, "{count}");
                }
                _ => {
                    let together: Vec<u8> = files.iter().flat_map(|file| npy_rows(file).0).collect();
                    assert!(together == npy_rows(&bench.path(&whole)).0, "{count}");
                    let shapes: Vec<String> = files.iter().map(|file| npy_rows(file).1).collect();
                    assert!(count < 11 || shapes.iter().any(|shape| shape.contains("(0, 32)")), "{shapes:?}");
                    let names = parts(&bench.path(&out), "files.txt");
                    let names: String = names.iter().map(|file| std::fs::read_to_string(file).unwrap()).collect();
                    assert_eq!(names, std::fs::read_to_string(bench.path("whole.files.txt")).unwrap());
                }
            }
        }
    }
}

#[test]
fn a_whole_part_is_not_made_again_and_any_other_is() {
    let bench = Bench::new();
    let out = "features.parquet";
    let arguments = bench.embed(out, &["--part", "1/2"]);
    assert!(!succeed(&strs(&arguments)).contains("is there already"));
    let file = bench.path("features.parquet/part-00001-of-00002.parquet");
    let first = std::fs::read(&file).unwrap();
    assert!(succeed(&strs(&arguments)).contains("part-00001-of-00002.parquet is there already"));
    // Damaged, cut short, gone.
    let mut damaged = first.clone();
    damaged[20] ^= 1;
    for damage in [Some(&damaged[..]), Some(&first[..9]), None] {
        match damage {
            Some(bytes) => std::fs::write(&file, bytes).unwrap(),
            None => std::fs::remove_file(&file).unwrap(),
        }
        assert!(!succeed(&strs(&arguments)).contains("is there already"));
        assert!(std::fs::read(&file).unwrap() == first);
    }
    // As if it was killed after the part and before what seals it.
    std::fs::remove_file(bench.path("features.parquet/.part-00001-of-00002.json")).unwrap();
    assert!(!succeed(&strs(&arguments)).contains("is there already"));
    let other = bench.embed(out, &["--part", "1/2", "--layer", "1"]);
    assert!(refused(&strs(&other)).contains("was made from other weights, images or settings"));
    assert!(std::fs::read(&file).unwrap() == first);
    succeed(&strs(&bench.embed(out, &["--part", "1/2", "--layer", "1", "--overwrite"])));
    assert!(std::fs::read(&file).unwrap() != first);
    // Another number of parts would double rows.
    let said = refused(&strs(&bench.embed(out, &["--part", "0/3"])));
    assert!(said.contains("part-00001-of-00002.parquet, which is not one of 3 parts"), "{said}");
}

#[test]
fn predictions_come_in_parts_and_wrong_parts_are_refused() {
    let bench = Bench::new();
    let [run, images, tuned] = ["run", "images", "tuned"].map(|name| bench.text(name));
    std::fs::remove_file(bench.path("images/b/6.png")).unwrap();
    let tune = ["finetune", "--weights", &run, "--data", &images, "--val", &images, "--out", &tuned];
    succeed(&[&tune[..], &["--steps", "1", "--set", "train.batch_size=4"]].concat());
    let predict = |out: &str, more: &[&str]| {
        let out = bench.text(out);
        succeed(&[&["predict", "--weights", &tuned, "--data", &images, "--out", &out], more].concat())
    };
    predict("whole.csv", &[]);
    for part in ["0/3", "1/3", "2/3"] {
        predict("parts.csv", &["--part", part]);
    }
    assert!(predict("parts.csv", &["--part", "2/3"]).contains("is there already"));
    let together: Vec<String> = parts(&bench.path("parts.csv"), "csv").iter().flat_map(|file| csv_rows(file)).collect();
    assert!(together == csv_rows(&bench.path("whole.csv")) && together.len() == 8);
    for bad in ["3/3", "x", "1/0"] {
        let said = refused(&strs(&bench.embed("new.csv", &["--part", bad])));
        assert!(said.contains("use I/N with I from 0 to N - 1"), "{said}");
    }
    let said = refused(&strs(&bench.embed("whole.csv", &["--part", "0/2"])));
    assert!(said.contains("is a file, and a table in parts is a folder"), "{said}");
    assert!(refused(&strs(&bench.embed("new.csv", &["--overwrite"]))).contains("--overwrite is for tables in parts"));
}
