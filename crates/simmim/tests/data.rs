//! `simmim data check` and `simmim data stats`.

#![allow(clippy::unwrap_used, reason = "a test may fail loudly")]

use std::path::Path;
use std::process::{Command, Output};

fn simmim(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_simmim")).args(arguments).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Five images of one colour each in two classes, and a file that is none.
fn images(folder: &Path) {
    for (i, (width, height)) in [(4, 4), (8, 6), (6, 8), (20, 10), (6, 6)].into_iter().enumerate() {
        let class = folder.join(if i < 2 { "a" } else { "b" });
        std::fs::create_dir_all(&class).unwrap();
        let color = image::Rgb([51 * i as u8, 255, 0]);
        image::RgbImage::from_pixel(width, height, color).save(class.join(format!("{i}.png"))).unwrap();
    }
    std::fs::write(folder.join("a/none.png"), "none").unwrap();
}

#[test]
fn a_check_names_what_cannot_be_read_and_its_parts_are_the_whole_report() {
    let place = tempfile::tempdir().unwrap();
    let [data, whole, parts] = ["images", "whole.csv", "parts.csv"].map(|name| place.path().join(name));
    images(&data);
    let (data, whole, out) = (data.to_str().unwrap(), whole.to_str().unwrap(), parts.to_str().unwrap());
    let output = simmim(&["data", "check", "--data", data, "--out", whole, "--threads", "3"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("5 images can be read, and 1 that cannot be read"), "{}", said(&output));
    assert!(said(&output).contains("none.png"), "{}", said(&output));
    let rows =
        |path: &Path| std::fs::read_to_string(path).unwrap().lines().skip(1).map(str::to_owned).collect::<Vec<_>>();
    let report = rows(Path::new(whole));
    assert!(report.iter().any(|row| row.ends_with("b/3.png,b,20,10,false,")), "{report:?}");
    assert!(report.iter().any(|row| row.contains("none.png,a,,,,") && row.len() > 20), "{report:?}");
    let mut together = Vec::new();
    for index in 0..4 {
        simmim(&["data", "check", "--data", data, "--out", out, "--part", &format!("{index}/4")]);
        together.extend(rows(&parts.join(format!("part-{index:05}-of-00004.csv"))));
    }
    assert_eq!(together, report);
    // Parts that are there are as unreadable as when they were made.
    let again =
        |index: usize| simmim(&["data", "check", "--data", data, "--out", out, "--part", &format!("{index}/4")]);
    let again: Vec<Output> = (0..4).map(again).collect();
    assert!(again.iter().all(|output| said(output).contains("is there already")));
    let codes: Vec<_> = again.iter().map(|output| output.status.code()).collect();
    assert_eq!(codes.iter().filter(|code| **code == Some(1)).count(), 1, "{codes:?}");
    assert_eq!(codes.iter().filter(|code| **code == Some(0)).count(), 3, "{codes:?}");
    std::fs::remove_file(Path::new(data).join("a/none.png")).unwrap();
    assert_eq!(simmim(&["data", "check", "--data", data]).status.code(), Some(0));
}

#[test]
fn stats_are_those_of_all_images_however_they_are_cut() {
    let place = tempfile::tempdir().unwrap();
    let [data, out] = ["images", "stats.json"].map(|name| place.path().join(name));
    images(&data);
    let (data, out) = (data.to_str().unwrap(), out.to_str().unwrap());
    let whole = simmim(&["data", "stats", "--data", data]);
    let text = String::from_utf8_lossy(&whole.stdout).into_owned();
    // Red is 0, 0.2, ... 0.8: mean 0.4, mean square 0.24. Constant channels are divided by 1.
    for line in [
        "images       5, and 1 that cannot be read",
        "shorter side 4 to 10 px, median 6",
        "longer side  4 to 20 px, median 8",
        "class        b: 3",
        "--set data.mean=[0.400000,1.000000,0.000000] --set data.std=[0.282843,1.000000,1.000000]",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    for count in [3, 7] {
        let out = format!("{out}-{count}.json");
        let missing = |output: &Output| {
            assert_eq!(output.status.code(), Some(2));
            said(output)
        };
        for index in 0..count {
            if index == 1 {
                let early = simmim(&["data", "stats", "--from", &out]);
                assert!(missing(&early).contains(&format!("holds 1 of {count} parts")), "{}", said(&early));
            }
            let part = format!("{index}/{count}");
            let output = simmim(&["data", "stats", "--data", data, "--out", &out, "--part", &part]);
            assert!(output.status.success(), "{}", said(&output));
        }
        assert_eq!(String::from_utf8_lossy(&simmim(&["data", "stats", "--from", &out]).stdout), text);
    }
    let gray = simmim(&["data", "stats", "--data", data, "--channels", "1"]);
    assert!(said(&gray).contains("data.mean=[0.") && !said(&gray).contains("data.mean=[0.400000,"), "{}", said(&gray));
    let wrong = simmim(&["data", "stats", "--from", data]);
    assert!(wrong.status.code() == Some(2) && said(&wrong).contains("holds 0 of 0 parts"), "{}", said(&wrong));
    let nowhere = simmim(&["data", "stats", "--data", data, "--part", "0/2"]);
    assert!(said(&nowhere).contains("--part needs --out"), "{}", said(&nowhere));
}
