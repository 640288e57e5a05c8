//! Probes, tables of features and neighbours, as their user meets them.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test or benchmark may fail loudly")]

use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::RowAccessor;
use std::path::Path;
use std::process::{Command, Output};

fn simmim(folder: &Path, arguments: &str) -> Output {
    let program = env!("CARGO_BIN_EXE_simmim");
    Command::new(program).current_dir(folder).args(arguments.split_whitespace()).output().expect("the program starts")
}

fn good(folder: &Path, arguments: &str) -> (String, String) {
    let out = simmim(folder, arguments);
    let texts = (String::from_utf8_lossy(&out.stdout).into_owned(), String::from_utf8_lossy(&out.stderr).into_owned());
    assert!(out.status.success(), "{arguments}: {}", texts.1);
    texts
}

const SHORT: &str = "--set train.batch_size=16 --set validate.images=16 --set log.every_steps=1 --set model.depth=2 \
                     --set model.embed_dim=64 --set reconstruct.images=1";
const T10K: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../simmim-data/demo/t10k-images-idx3-ubyte.gz");
const TRAIN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../simmim-data/demo/train-images-idx3-ubyte.gz");

/// Two classes of gray squares, told apart by their brightness; `count` images each.
fn squares(folder: &Path, classes: &[(&str, u8)], count: u8) {
    for (class, gray) in classes {
        std::fs::create_dir_all(folder.join(class)).unwrap();
        for i in 0..count {
            let pixels = (0..28 * 28u32).map(|p| gray.wrapping_add((p % u32::from(3 + i)) as u8)).collect();
            let image = image::GrayImage::from_raw(28, 28, pixels).unwrap();
            image.save(folder.join(class).join(format!("{i}.png"))).unwrap();
        }
    }
}

#[test]
fn a_probe_rates_every_layer_and_the_baselines_and_keeps_the_features() {
    let place = tempfile::tempdir().unwrap();
    good(place.path(), &format!("pretrain --out run --steps 2 {SHORT}"));
    squares(&place.path().join("train"), &[("dark", 10), ("light", 200), ("middle", 100)], 10);
    // Another order and a missing class: matched by name, told to the user.
    squares(&place.path().join("val"), &[("light", 205), ("middle", 105)], 5);
    let arguments = "probe --weights run --data train --val val --threads 2";
    let (table, told) = good(place.path(), arguments);
    for text in ["raw pixels", "random weights, block 1", "random weights, norm", "\nblock 1 ", "\nblock 2 ", "\nnorm "]
    {
        assert!(table.contains(text), "{table}");
    }
    assert!(told.contains("val has no images of these classes: dark"), "{told}");
    assert!(told.contains("images/s"), "{told}");
    let run = place.path().join("run");
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(run.join("probe.json")).unwrap()).unwrap();
    assert_eq!((json["rows"].as_array().unwrap().len(), json["train_images"].as_u64()), (7, Some(30)));
    assert_eq!(json["rows"][0]["linear"]["val_accuracy"], 1.0, "brightness is in the pixels: {json}");
    assert_eq!(std::fs::read_to_string(run.join("probe.csv")).unwrap().lines().count(), 8);

    // The second time nothing is computed, and damage is noticed and made good.
    let (again, told) = good(place.path(), arguments);
    assert_eq!(again, table);
    assert_eq!(told.matches("from the cache").count(), 4, "{told}");
    // Each layer is kept for itself, so a narrower set is there and a wider one is completed.
    let (_, told) = good(place.path(), &format!("{arguments} --layers 1 --no-baselines"));
    assert_eq!((told.matches("images, from the cache").count(), told.matches("images/s").count()), (2, 0), "{told}");
    let norms = std::fs::read_dir(run.join("features")).unwrap().map(|e| e.unwrap().path());
    let norms: Vec<_> = norms.filter(|p| p.to_string_lossy().contains("-norm-")).collect();
    assert_eq!(norms.len(), 4, "training and validation images, trained and random weights");
    norms.iter().for_each(|p| std::fs::remove_file(p).unwrap());
    let (again, told) = good(place.path(), arguments);
    assert_eq!(again, table);
    assert_eq!(told.matches("2 of 3 layers from the cache").count(), 4, "{told}");
    let kept = std::fs::read_dir(run.join("features")).unwrap().next().unwrap().unwrap().path();
    let mut bytes = std::fs::read(&kept).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&kept, bytes).unwrap();
    let (again, told) = good(place.path(), arguments);
    assert_eq!((again, told.matches("images, from the cache").count()), (table, 3), "{told}");

    // A changed image is new data; the training images are the same.
    squares(&place.path().join("val"), &[("light", 215)], 5);
    let (json, told) = good(place.path(), &format!("{arguments} --method knn --layers 1,-1 --json"));
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["rows"].as_array().unwrap().len(), 5);
    assert!(json["best"]["linear"].is_null() && json["best"]["knn"]["layer"].is_number(), "{json}");
    assert!(told.matches("from the cache").count() == 2 && told.matches("VAL: 10 of 10").count() == 2, "{told}");
    assert!(told.contains("are now in run/probe-1.json"), "{told}");

    // A narrower look keeps the wider one's rows, and an unreadable image is told once.
    std::fs::write(place.path().join("train/dark/0.png"), "torn").unwrap();
    let (full, told) = good(place.path(), arguments);
    assert_eq!(told.matches("1 image could not be read").count(), 1, "{told}");
    let (narrow, told) = good(place.path(), &format!("{arguments} --method linear --layers 2 --no-baselines"));
    assert!(told.contains("probe.json keeps 7 rows") && narrow.lines().count() < full.lines().count(), "{told}");
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(run.join("probe.json")).unwrap()).unwrap();
    let rows = json["rows"].as_array().unwrap();
    assert!(rows.len() == 7 && rows.iter().all(|r| r["knn"]["space"].is_string() && r["linear"].is_object()), "{json}");
}

/// Images of two classes in groups of four alike: each group has a pattern of its own, which says nothing of its class.
fn twins(folder: &Path, groups: std::ops::Range<u32>) {
    for group in groups {
        let class = folder.join(["even", "odd"][group as usize % 2]);
        std::fs::create_dir_all(&class).unwrap();
        for twin in 0..4 {
            let value = |p: u32| (((p + 1) * (group * 7919 + 13)) >> 3) as u8 & 0xf0 | (p * (twin + 3)) as u8 & 0x07;
            let image = image::GrayImage::from_raw(28, 28, (0..28 * 28).map(value).collect()).unwrap();
            image.save(class.join(format!("object{group:03}_view{twin}.png"))).unwrap();
        }
    }
}

#[test]
fn near_duplicates_on_both_sides_of_the_split_are_doubted_and_groups_part_them() {
    let place = tempfile::tempdir().unwrap();
    good(place.path(), &format!("pretrain --out run --steps 1 {SHORT}"));
    twins(&place.path().join("train"), 0..40);
    twins(&place.path().join("val"), 100..140);
    let arguments = "probe --weights run --data train --val val --layers 2 --no-baselines";
    let split = |json: &str| {
        let json: serde_json::Value = serde_json::from_str(json).unwrap();
        json["rows"][0]["knn"]["split_accuracy"].as_f64().unwrap()
    };
    let (json, told) = good(place.path(), &format!("{arguments} --json"));
    assert!(split(&json) > 0.9, "every image has its twins among those it is compared with: {json}");
    assert!(told.contains("warning: kNN: ") && told.contains("--groups keeps what belongs together"), "{told}");
    for (groups, said) in [("^(object[0-9]+)_", "40 groups of"), ("groups.csv", "40 groups of")] {
        let line = |group: u32, twin: u32| {
            format!("{}/object{group:03}_view{twin}.png,{group}\n", ["even", "odd"][group as usize % 2])
        };
        let lines: String = (0..40).flat_map(|group| (0..4).map(move |twin| line(group, twin))).collect();
        std::fs::write(place.path().join("groups.csv"), lines).unwrap();
        let (json, told) = good(place.path(), &format!("{arguments} --json --groups {groups}"));
        assert!(split(&json) < 0.8, "{json}");
        assert!(told.contains(said) && !told.contains("--groups keeps"), "{told}");
    }
    // Other groups are other conditions, and the folders are the classes here.
    let (_, told) = good(place.path(), arguments);
    assert!(told.contains("are now in run/probe-2.json"), "{told}");
    for (groups, message) in [
        ("^(bird)", "none of the 160 training images belongs to a group, such as even/object000_view0.png"),
        ("folder", "all training images of each class are of one group"),
        ("nowhere.csv", "there is no such file"),
    ] {
        let out = simmim(place.path(), &format!("{arguments} --groups {groups}"));
        let told = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.code() == Some(2) && told.contains(message) && told.contains("help: "), "{groups}: {told}");
    }
}

#[test]
fn a_fit_that_is_cut_short_is_told() {
    let place = tempfile::tempdir().unwrap();
    good(place.path(), &format!("pretrain --out run --steps 1 {SHORT}"));
    squares(&place.path().join("train"), &[("dark", 10), ("light", 200), ("middle", 100)], 10);
    let arguments = "probe --weights run --data train --val train --method linear --layers 1 --no-baselines";
    let (table, told) = good(place.path(), &format!("{arguments} --max-iterations 1"));
    assert!(told.contains("ended after 1 iteration, before the minimum"), "{told}");
    assert!(told.contains("--max-iterations allows more") && table.contains("not converged"), "{told}{table}");
    let (table, told) = good(place.path(), arguments);
    assert!(!told.contains("before the minimum") && !table.contains("not converged"), "{told}{table}");
}

#[test]
fn what_cannot_be_probed_is_refused_in_clear_words() {
    let place = tempfile::tempdir().unwrap();
    good(place.path(), &format!("pretrain --out run --steps 1 {SHORT}"));
    squares(&place.path().join("good"), &[("a", 0), ("b", 99)], 3);
    squares(&place.path().join("other"), &[("a", 0), ("x", 99)], 3);
    squares(&place.path().join("one"), &[("a", 0)], 3);
    squares(place.path(), &[("flat", 0)], 3);
    for (arguments, message) in [
        ("--data good --val other", "other has classes that good lacks: x (it has a, b)"),
        ("--data one --val good", "one: all images have the same class, a"),
        ("--data good --val flat", "flat: the images have no classes"),
        ("--data good --val nowhere", "nowhere"),
        ("--data good --val good --pool cls", "the model has no class token"),
        ("--data good --val good --pool none", "--pool none does not give one vector per image"),
        ("--data good --val good --layers 3", "there is no layer 3"),
        ("--data good --val good --layers x", "`x` is not a layer"),
        ("--data good --val good --set model.depth=3", "the weights do not fit the model"),
    ] {
        let out = simmim(place.path(), &format!("probe --weights run {arguments}"));
        let told = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(2), "{arguments}: {told}");
        assert!(told.contains(message) && told.contains("help: "), "{arguments}: {told}");
        assert!(!place.path().join("run/probe.json").exists());
    }
    let (_, told) =
        good(place.path(), "probe --weights run --data good --val good/../good --method knn --no-baselines");
    assert!(told.contains("is used for training and validation"), "{told}");
}

#[test]
fn a_run_on_the_demonstration_set_is_probed_on_it_and_other_runs_want_paths() {
    let place = tempfile::tempdir().unwrap();
    good(place.path(), &format!("pretrain --out run --steps 1 {SHORT}"));
    let (json, _) = good(place.path(), "probe --weights run --method knn --layers 1 --no-baselines --json");
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((json["train_images"].as_u64(), json["val_images"].as_u64()), (Some(6000), Some(1000)));
    good(place.path(), &format!("pretrain --recipe demo --out other --steps 1 {SHORT} --data {T10K}"));
    let out = simmim(place.path(), "probe --weights other");
    assert_eq!(out.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&out.stderr).contains("add --data TRAIN and --val VAL"));
}

#[test]
fn probing_changes_nothing_of_the_training_and_survives_a_resume() {
    let place = tempfile::tempdir().unwrap();
    let probe = format!("--probe-data {TRAIN}:{T10K} --set probe.every_steps=3 --set probe.images=400");
    let every = "--set checkpoint.every_steps=4 --set checkpoint.keep=9 --set log.tensorboard=true";
    good(place.path(), &format!("pretrain --out plain --steps 9 {SHORT}"));
    let (said, told) = good(place.path(), &format!("pretrain --out probed --steps 9 {SHORT} {probe} {every}"));
    assert!(told.contains(", kNN ") && said.contains("kNN probe"), "{told}{said}");
    let file = |run: &str, name: &str| std::fs::read(place.path().join(run).join(name)).unwrap();
    assert!(file("plain", "model.safetensors") == file("probed", "model.safetensors"), "the probe changed the weights");
    let probes = || -> Vec<(u64, f64)> {
        let lines = String::from_utf8(file("probed", "metrics.jsonl")).unwrap();
        let line = |l: &str| {
            let l: serde_json::Value = serde_json::from_str(l).unwrap();
            Some((l["step"].as_u64()?, l["probe_knn"].as_f64()?))
        };
        lines.lines().filter_map(line).collect()
    };
    let whole = probes();
    assert_eq!(whole.iter().map(|p| p.0).collect::<Vec<_>>(), [3, 6, 9]);
    assert!(whole.iter().all(|p| p.1 > 0.2), "ten classes, so chance is 0.1: {whole:?}");
    for step in [9, 8] {
        std::fs::remove_dir_all(place.path().join(format!("probed/checkpoints/step-{step:08}"))).unwrap();
    }
    good(place.path(), "pretrain --out probed --resume");
    assert!(file("plain", "model.safetensors") == file("probed", "model.safetensors"));
    assert_eq!(probes(), whole);
    let events = std::fs::read_dir(place.path().join("probed/tensorboard")).unwrap();
    let events: Vec<u8> = events.flat_map(|f| std::fs::read(f.unwrap().path()).unwrap()).collect();
    for tag in ["probe/knn", "validate/mean_color", "validate/visible_neighbors"] {
        assert!(events.windows(tag.len()).any(|w| w == tag.as_bytes()), "{tag}");
    }

    for (paths, message) in [
        (TRAIN.to_owned(), "has no colon"),
        (format!("{TRAIN}:nowhere"), "names `nowhere`, which does not exist"),
        (format!("nowhere:{T10K}"), "names `nowhere`, which does not exist"),
    ] {
        let out = simmim(place.path(), &format!("pretrain --out none --probe-data {paths}"));
        assert_eq!(out.status.code(), Some(2));
        let told = String::from_utf8_lossy(&out.stderr);
        assert!(told.contains(message), "{told}");
        assert!(!place.path().join("none").exists());
    }
}

#[test]
fn a_run_says_how_its_loss_compares_with_predictors_that_learn_nothing() {
    let place = tempfile::tempdir().unwrap();
    let (said, told) = good(place.path(), &format!("pretrain --out run --steps 2 {SHORT}"));
    assert!(told.contains("trivial predictors: mean colour"), "{told}");
    assert!(said.contains("worse than filling hidden patches with one colour"), "{said}");
    assert!(said.contains("above the mean colour"), "{said}");
    let json = std::fs::read(place.path().join("run/baselines.json")).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    let (mean, near) = (json["mean_color"].as_f64().unwrap(), json["visible_neighbors"].as_f64().unwrap());
    assert!(near < mean && near > 0.1, "neighbours know more than the whole image: {json}");
    assert!(std::fs::read_to_string(place.path().join("run/curves.svg")).unwrap().contains("held-out loss"));
}

#[test]
fn features_go_to_tables_with_path_label_and_vector() {
    let place = tempfile::tempdir().unwrap();
    good(place.path(), &format!("pretrain --out run --steps 1 {SHORT}"));
    squares(&place.path().join("data"), &[("dark", 10), ("light, \"very\"", 200)], 3);
    std::fs::write(place.path().join("data/dark/broken.png"), "no image").unwrap();
    for out in ["f.npy", "f.csv", "f.parquet"] {
        let (_, told) = good(place.path(), &format!("embed --weights run --data data --out {out} --layer 1 --batch 4"));
        assert!(told.contains("1 image could not be read") && told.contains("broken.png"), "{told}");
        assert!(told.contains("6 of 7 images") && told.contains("images/s"), "{told}");
    }
    let npy = std::fs::read(place.path().join("f.npy")).unwrap();
    let (header, npy) = npy.split_at(npy.len() - 6 * 64 * 4);
    let header = String::from_utf8_lossy(header);
    assert!(header.contains("'descr': '<f4', 'fortran_order': False, 'shape': (6, 64)") && header.ends_with('\n'));
    let npy: Vec<f32> = npy.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    let names = std::fs::read_to_string(place.path().join("f.files.txt")).unwrap();
    let names: Vec<&str> = names.lines().collect();
    assert_eq!((names.len(), names[5]), (6, "light, \"very\"/2.png"));
    let mut csv = csv::Reader::from_path(place.path().join("f.csv")).unwrap();
    assert_eq!(csv.headers().unwrap().iter().take(3).collect::<Vec<_>>(), ["path", "label", "0"]);
    let rows: Vec<csv::StringRecord> = csv.records().map(Result::unwrap).collect();
    let file = std::fs::File::open(place.path().join("f.parquet")).unwrap();
    let table = SerializedFileReader::new(file).unwrap();
    let table: Vec<_> = table.get_row_iter(None).unwrap().map(Result::unwrap).collect();
    assert_eq!((rows.len(), table.len()), (6, 6));
    for (i, (csv, parquet)) in rows.iter().zip(&table).enumerate() {
        let label = if i < 3 { "dark" } else { "light, \"very\"" };
        assert_eq!((&csv[0], &csv[1]), (names[i], label));
        assert_eq!(
            (parquet.get_string(0).unwrap().as_str(), parquet.get_string(1).unwrap().as_str()),
            (names[i], label)
        );
        let vector: Vec<f32> =
            parquet.get_list(2).unwrap().elements().iter().map(|v| v.to_string().parse().unwrap()).collect();
        let expected = &npy[i * 64..(i + 1) * 64];
        assert_eq!(csv.iter().skip(2).map(|v| v.parse().unwrap()).collect::<Vec<f32>>(), expected);
        assert!(vector.iter().zip(expected).all(|(a, b)| (a - b).abs() <= 1e-5 * b.abs().max(1.0)), "{vector:?}");
    }
    for (arguments, message) in [
        ("--out f.txt", "the name does not end in a known format"),
        ("--out f2.csv --pool none", "a table has one vector per image"),
        ("--out f2.csv --set data.max_errors=0", "more than the 0 allowed"),
    ] {
        let out = simmim(place.path(), &format!("embed --weights run --data data {arguments}"));
        let told = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.code() == Some(2) && told.contains(message), "{arguments}: {told}");
        let left: Vec<_> = std::fs::read_dir(place.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(!left.iter().any(|n| n.to_string_lossy().starts_with("f2")), "{left:?}");
    }
}

#[test]
fn the_nearest_images_are_listed_and_drawn() {
    let place = tempfile::tempdir().unwrap();
    good(place.path(), &format!("pretrain --out run --steps 1 {SHORT}"));
    squares(&place.path().join("data"), &[("dark", 10), ("light", 200)], 4);
    std::fs::copy(place.path().join("data/light/2.png"), place.path().join("mine.png")).unwrap();
    let (list, _) = good(place.path(), "neighbors --weights run --data data --query mine.png --out sheet.png -k 3");
    let lines: Vec<&str> = list.lines().collect();
    assert_eq!(lines.len(), 4);
    assert!(lines[0].starts_with("1\t1.0000") && lines[0].ends_with("light/2.png\tlight"), "{list}");
    let sheet = image::open(place.path().join("sheet.png")).unwrap();
    assert_eq!((sheet.width(), sheet.height()), (4 * 128 + 8, 142 + 8));
    for own in ["data/light/2.png", "./data/../data/light/2.png"] {
        let query = format!("neighbors --weights run --data data --query {own} --out sheet.png -k 99");
        let (list, told) = good(place.path(), &query);
        assert!(told.contains("the query is image #6 of the data, and is left out"), "{told}");
        assert!(list.lines().count() == 8 && !list.contains("light/2.png"), "{list}");
    }
    let (list, told) = good(place.path(), "neighbors --weights run --data data --query #6 --out sheet.png -k 99");
    assert_eq!(list.lines().count(), 8, "all but the image itself, and the picture: {list}");
    assert!(!list.contains("light/2.png") && told.contains("from the cache"), "{list}{told}");
    let out = simmim(place.path(), "neighbors --weights run --data data --query #8 --out no.png");
    let told = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.code() == Some(2) && told.contains("there is no image #8"), "{told}");
    let out = simmim(place.path(), "neighbors --weights run --data data --query data --out no.png");
    let told = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.code() == Some(2) && told.contains("data holds 8 images"), "{told}");
    assert!(!place.path().join("no.png").exists());
}
