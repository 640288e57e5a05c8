//! Trainings on ranks of MPI, started by mpirun.

#![cfg(all(feature = "mpi", target_os = "linux"))]
#![allow(clippy::unwrap_used, reason = "a test may fail loudly")]

use serde_json::Value;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// After this long a training of the tests hangs.
const PATIENCE: Duration = Duration::from_secs(120);

/// A small model on the built-in images.
const SMALL: [&str; 12] = [
    "model.embed_dim=32",
    "model.depth=2",
    "model.num_heads=2",
    "model.drop_path=0.1",
    "train.batch_size=12",
    "train.accumulation=0",
    "data.workers=1",
    "log.every_steps=1",
    "validate.images=40",
    "validate.every_steps=4",
    "schedule.warmup_steps=0",
    "reconstruct.images=1",
];

/// A command on so many ranks; 0: without mpirun.
fn simmim(ranks: usize, arguments: &[&str], set: &[&str]) -> Command {
    let program = env!("CARGO_BIN_EXE_simmim");
    let mut command = if ranks == 0 {
        Command::new(program)
    } else {
        let mut command = Command::new("mpirun");
        let local = ["--oversubscribe", "--allow-run-as-root", "--bind-to", "none", "--mca", "btl", "self,vader"];
        command.args(local).args(["-n", &ranks.to_string(), program]);
        command
    };
    command.args(arguments).args(["--threads", "1"]);
    command.args(set.iter().flat_map(|value| ["--set", *value]));
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn pretrain(ranks: usize, out: &Path, more: &[&str]) -> Command {
    simmim(ranks, &["pretrain", "--out", out.to_str().unwrap()], &[&SMALL[..], more].concat())
}

fn resume(ranks: usize, out: &Path) -> Command {
    simmim(ranks, &["pretrain", "--resume", "--out", out.to_str().unwrap()], &[])
}

/// Waits for the end, but not for ever. What the ranks say is read while they run: a full pipe would hold them up.
fn finish(mut child: Child) -> Output {
    let (said, warned) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let read = |mut from: Box<dyn Read + Send>| {
        std::thread::spawn(move || {
            let mut all = Vec::new();
            from.read_to_end(&mut all).map(|_| all)
        })
    };
    let (said, warned) = (read(Box::new(said)), read(Box::new(warned)));
    let start = Instant::now();
    let mut hangs = false;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if start.elapsed() > PATIENCE && !hangs {
            hangs = true;
            child.kill().unwrap();
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let [stdout, stderr] = [said, warned].map(|reader| reader.join().unwrap().unwrap());
    let output = Output { status, stdout, stderr };
    assert!(!hangs, "the ranks hang: {}", text(&output));
    output
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn succeed(mut command: Command) -> Output {
    let output = finish(command.spawn().unwrap());
    assert!(output.status.success(), "{}", text(&output));
    output
}

/// The losses of a run, by step.
fn losses(run: &Path) -> Vec<(u64, f64, f64)> {
    let lines = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let number = |line: &Value, key: &str| line[key].as_f64().unwrap_or_default();
    let line = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap();
        (line["step"].as_u64().unwrap(), number(&line, "loss"), number(&line, "val_loss"))
    };
    lines.lines().map(line).collect()
}

fn assert_close(one: &Path, other: &Path, tolerance: f64) {
    let (one, other) = (losses(one), losses(other));
    assert_eq!(one.len(), other.len());
    for (a, b) in one.iter().zip(&other) {
        let close = |a: f64, b: f64| (a - b).abs() <= tolerance * a.abs();
        assert!(a.0 == b.0 && close(a.1, b.1) && close(a.2, b.2), "{a:?}, {b:?}");
    }
}

fn checkpoints(run: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(run.join("checkpoints")) else { return 0 };
    entries.flatten().filter(|e| e.file_name().to_string_lossy().starts_with("step-")).count()
}

fn wait_for_checkpoint(run: &Path) {
    let start = Instant::now();
    while checkpoints(run) == 0 {
        assert!(start.elapsed() < PATIENCE, "there is no checkpoint");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn metrics_bytes(run: &Path) -> u64 {
    std::fs::metadata(run.join("metrics.jsonl")).map_or(0, |file| file.len())
}

/// Waits until a run has logged more than so many bytes.
fn wait_for_metrics(run: &Path, bytes: u64) {
    let start = Instant::now();
    while metrics_bytes(run) <= bytes {
        assert!(start.elapsed() < PATIENCE, "there is no step");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The processes that mpirun has started.
fn ranks_of(mpirun: u32) -> Vec<u32> {
    let is_child = |pid: u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (name, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
        (name == "simmim" && rest.split_whitespace().nth(1)? == mpirun.to_string()).then_some(pid)
    };
    let pids = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse().ok());
    let mut found: Vec<u32> = pids.filter_map(is_child).collect();
    found.sort_unstable();
    found
}

fn signal(name: &str, pid: u32) {
    assert!(Command::new("kill").args([name, &pid.to_string()]).status().unwrap().success());
}

/// What the ranks said went wrong: one message, however many they are.
fn only_error(output: &Output) -> String {
    let all = text(output);
    let errors: Vec<&str> = all.lines().filter(|line| line.starts_with("error: ")).collect();
    assert!(errors.len() == 1 && !output.status.success(), "{all}");
    errors[0].to_owned()
}

#[test]
fn one_to_four_ranks_train_the_same_model_and_repeat_it_bit_for_bit() {
    let place = tempfile::tempdir().unwrap();
    let run = |name: &str| place.path().join(name);
    succeed(pretrain(0, &run("alone"), &["schedule.steps=8"]));
    succeed(pretrain(0, &run("parts"), &["schedule.steps=8", "train.accumulation=4"]));
    assert_close(&run("alone"), &run("parts"), 1e-6);
    for ranks in 1..=4 {
        let first = run(&ranks.to_string());
        let said = succeed(pretrain(ranks, &first, &["schedule.steps=8"]));
        assert_close(&run("alone"), &first, 1e-6);
        assert_eq!(text(&said).matches("held-out loss ").count(), 2, "{}", text(&said));
    }
    succeed(pretrain(3, &run("again"), &["schedule.steps=8"]));
    let model = |name: &str| std::fs::read(run(name).join("model.safetensors")).unwrap();
    assert!(model("3") == model("again"));
}

#[test]
fn moments_that_are_shared_out_and_small_pieces_change_no_bit_and_rounded_gradients_little() {
    let place = tempfile::tempdir().unwrap();
    let run = |name: &str, set: &[&str]| {
        let out = place.path().join(name);
        let set = [&["schedule.steps=6", "optimizer.clip_norm=0"], set].concat();
        succeed(pretrain(3, &out, &set));
        out
    };
    let whole = run("whole", &[]);
    let files = |out: &Path| {
        let state = std::fs::read(out.join("checkpoints/step-00000006/state.safetensors")).unwrap();
        (std::fs::read(out.join("model.safetensors")).unwrap(), state)
    };
    let pieces = run("pieces", &["train.bucket_bytes=1000"]);
    assert!(files(&pieces) == files(&whole));
    let sharded = run("sharded", &["train.shard_optimizer=true", "train.bucket_bytes=1000"]);
    assert!(files(&sharded) == files(&whole));
    let rounded = run("rounded", &["train.gradient_precision=bfloat16"]);
    assert!(files(&rounded) != files(&whole));
    assert_close(&whole, &rounded, 1e-2);
}

#[test]
fn a_swin_transformer_trains_the_same_on_ranks() {
    let place = tempfile::tempdir().unwrap();
    let set = [
        "model.channels=1",
        "model.embed_dim=12",
        "model.depths=[1,1,1]",
        "model.num_heads=[1,2,4]",
        "model.drop_path=0.2",
        "train.batch_size=12",
        "train.accumulation=0",
        "data.workers=1",
        "log.every_steps=1",
        "validate.images=40",
        "validate.every_steps=4",
        "schedule.steps=4",
        "schedule.epochs=0",
        "schedule.warmup_steps=0",
        "schedule.warmup_epochs=0",
        "reconstruct.images=1",
    ];
    let run = |ranks: usize, more: &[&str]| {
        let out = place.path().join(format!("{ranks}-{}", more.len()));
        let arguments = ["pretrain", "--recipe", "swin_small_images_32", "--out", out.to_str().unwrap()];
        succeed(simmim(ranks, &arguments, &[&set[..], more].concat()));
        out
    };
    let alone = run(0, &[]);
    assert_close(&alone, &run(3, &[]), 2e-6);
    assert_close(&alone, &run(2, &["train.shard_optimizer=true"]), 2e-6);
}

#[test]
fn fine_tuning_with_mixup_is_the_same_on_ranks() {
    let place = tempfile::tempdir().unwrap();
    let path = |name: &str| place.path().join(name).to_str().unwrap().to_owned();
    let set = [
        "model.embed_dim=32",
        "model.depth=2",
        "model.num_heads=2",
        "train.batch_size=12",
        "log.every_steps=1",
        "augment.mixup=0.8",
        "augment.cutmix=1.0",
        "schedule.steps=6",
        "schedule.warmup_epochs=0",
        "data.workers=1",
    ];
    succeed(pretrain(0, Path::new(&path("model")), &["schedule.steps=1"]));
    let tuned = |ranks: usize| {
        let out = path(&format!("tuned-{ranks}"));
        succeed(simmim(ranks, &["finetune", "--weights", &path("model"), "--out", &out], &set[3..]));
        PathBuf::from(out)
    };
    let alone = tuned(0);
    for ranks in [2, 3] {
        assert_close(&alone, &tuned(ranks), 5e-6);
    }
}

#[test]
fn a_killed_rank_ends_all_and_the_run_goes_on_with_fewer() {
    let place = tempfile::tempdir().unwrap();
    let (whole, cut) = (place.path().join("whole"), place.path().join("cut"));
    let set = ["schedule.steps=120", "checkpoint.every_steps=2", "validate.every_steps=0"];
    succeed(pretrain(0, &whole, &set));
    for (ranks, killed) in [(3, 2), (2, 0)] {
        let child =
            if cut.exists() { resume(ranks, &cut).spawn() } else { pretrain(ranks, &cut, &set).spawn() }.unwrap();
        wait_for_checkpoint(&cut);
        std::thread::sleep(Duration::from_millis(200));
        let running = ranks_of(child.id());
        if let Some(&rank) = running.get(killed) {
            signal("-KILL", rank);
        }
        let start = Instant::now();
        let output = finish(child);
        assert!(start.elapsed() < Duration::from_secs(20), "{}", text(&output));
        assert!(running.is_empty() || !output.status.success() || losses(&cut).len() == 120, "{}", text(&output));
    }
    succeed(resume(1, &cut));
    // The rounding of other sums grows in 120 steps.
    assert_close(&whole, &cut, 1e-3);
}

#[test]
fn a_signal_stops_all_ranks_with_a_checkpoint() {
    let place = tempfile::tempdir().unwrap();
    let run = place.path().join("run");
    // mpirun waits that long before it tells the ranks to stop, and as long again before it kills them; the default is a second. Meanwhile it
    // reads nothing, so a rank that says much would wait for it. Only the stop writes a checkpoint.
    let quiet = ["schedule.steps=100000", "checkpoint.every_steps=100000", "validate.every_steps=0"];
    let mut command = pretrain(3, &run, &quiet);
    let child = command.env("OMPI_MCA_odls_base_sigkill_timeout", "5").spawn().unwrap();
    wait_for_metrics(&run, 0);
    signal("-TERM", child.id());
    let output = finish(child);
    let said = text(&output);
    assert!(said.matches("stopped and saved after step").count() == 1 && !output.status.success(), "{said}");
    assert_eq!(checkpoints(&run), 1, "{said}");
    let (latest, last) = (std::fs::read_to_string(run.join("checkpoints/latest")).unwrap(), losses(&run).len());
    assert!(latest.contains(&format!("{last:08}")), "{latest}, {last} steps: {said}");
}

#[test]
fn twenty_killed_ranks_cost_no_bit() {
    let place = tempfile::tempdir().unwrap();
    let (whole, cut) = (place.path().join("whole"), place.path().join("cut"));
    let set = [
        "schedule.steps=1500",
        "checkpoint.every_steps=10",
        "validate.every_steps=0",
        "log.every_steps=50",
        "train.shard_optimizer=true",
    ];
    succeed(pretrain(2, &whole, &set));
    let mut kills = 0;
    while kills < 20 {
        let child = if cut.exists() { resume(2, &cut).spawn() } else { pretrain(2, &cut, &set).spawn() }.unwrap();
        if kills == 0 {
            wait_for_checkpoint(&cut);
        }
        // Another moment and another rank each time.
        let start = Instant::now();
        while ranks_of(child.id()).len() < 2 && start.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(2));
        }
        std::thread::sleep(Duration::from_millis(100 + kills * 7919 % 400));
        let running = ranks_of(child.id());
        if running.len() == 2 {
            signal("-KILL", running[(kills * 13 % 5 % 2) as usize]);
            kills += 1;
        }
        let output = finish(child);
        assert!(!output.status.success(), "it ended before twenty kills: {}", text(&output));
    }
    succeed(resume(2, &cut));
    let model = |run: &Path| std::fs::read(run.join("model.safetensors")).unwrap();
    assert!(model(&whole) == model(&cut));
    assert_eq!(losses(&whole), losses(&cut));
}

#[test]
fn a_rank_that_hangs_is_named_and_ends_all() {
    let place = tempfile::tempdir().unwrap();
    let run = place.path().join("run");
    let set = ["schedule.steps=1000000", "checkpoint.every_steps=50", "validate.every_steps=0", "train.rank_timeout=2"];
    for stopped in [2, 0] {
        let before = metrics_bytes(&run);
        let child = if before > 0 { resume(3, &run).spawn() } else { pretrain(3, &run, &set).spawn() }.unwrap();
        wait_for_metrics(&run, before + 1000);
        let ranks = ranks_of(child.id());
        signal("-STOP", ranks[stopped]);
        let start = Instant::now();
        let output = finish(child);
        assert!(start.elapsed() < Duration::from_secs(30), "{}", text(&output));
        let error = only_error(&output);
        assert!(error.contains(&format!("2 seconds: rank {stopped} does not answer")), "{error}");
        while ranks.iter().any(|rank| Path::new(&format!("/proc/{rank}/stat")).exists()) {
            assert!(start.elapsed() < Duration::from_secs(30), "a rank is left");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn the_signal_for_requeueing_gives_its_exit_code_on_ranks_and_alone() {
    let place = tempfile::tempdir().unwrap();
    for ranks in [0, 2] {
        let run = place.path().join(ranks.to_string());
        let mut command =
            pretrain(ranks, &run, &["schedule.steps=1000000", "checkpoint.every_steps=0", "validate.every_steps=0"]);
        let child = command.args(["--requeue-signal", "usr1"]).spawn().unwrap();
        wait_for_metrics(&run, 0);
        // mpirun hands this signal on; batch systems send it to every rank.
        signal("-USR1", child.id());
        let output = finish(child);
        assert_eq!(output.status.code(), Some(75), "{}", text(&output));
        assert_eq!(text(&output).matches("stopped and saved after step").count(), 1, "{}", text(&output));
        assert_eq!(checkpoints(&run), 1);
    }
}

#[test]
fn what_cannot_go_on_is_said_once() {
    let place = tempfile::tempdir().unwrap();
    let run = |name: &str| place.path().join(name);
    let failed = |mut command: Command| only_error(&finish(command.spawn().unwrap()));
    let nan = failed(pretrain(
        3,
        &run("nan"),
        &["schedule.steps=40", "optimizer.lr=1e30", "optimizer.clip_norm=0", "guard.on_nan=stop"],
    ));
    assert!(nan.contains("not finite"), "{nan}");
    let uneven = failed(pretrain(4, &run("uneven"), &["train.batch_size=10"]));
    assert!(uneven.contains("cannot be shared equally by 4 ranks"), "{uneven}");
    let unknown = failed(pretrain(2, &run("unknown"), &["train.batch=10"]));
    assert!(unknown.contains("train.batch"), "{unknown}");
}

#[test]
fn ranks_embed_their_shares() {
    let place = tempfile::tempdir().unwrap();
    let path = |name: &str| place.path().join(name).to_str().unwrap().to_owned();
    succeed(pretrain(0, Path::new(&path("run")), &["schedule.steps=1"]));
    for i in 0..5u8 {
        let image = image::GrayImage::from_fn(28, 28, |x, y| image::Luma([(x * y) as u8 ^ (i * 50)]));
        std::fs::create_dir_all(path("images")).unwrap();
        image.save(path(&format!("images/{i}.png"))).unwrap();
    }
    let embed = |ranks: usize, out: &str, more: &[&str]| {
        let given = ["embed", "--weights", &path("run"), "--data", &path("images"), "--out", &path(out)];
        simmim(ranks, &[&given[..], more].concat(), &[])
    };
    succeed(embed(0, "whole.csv", &[]));
    succeed(embed(2, "shares.csv", &[]));
    let rows = |name: &str| {
        let text = std::fs::read_to_string(path(name)).unwrap();
        text.lines().skip(1).map(str::to_owned).collect::<Vec<_>>()
    };
    let together = [rows("shares.csv/part-00000-of-00002.csv"), rows("shares.csv/part-00001-of-00002.csv")].concat();
    assert!(together == rows("whole.csv"));
    let stats = |ranks: usize| {
        let output = succeed(simmim(ranks, &["data", "stats", "--data", &path("images"), "--channels", "1"], &[]));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert!(stats(0).contains("data.mean") && stats(0) == stats(2), "{}", stats(2));
    // A rank whose part is there must not leave the other, which makes its own again, waiting for it.
    let check = || {
        let given = ["data", "check", "--data", &path("images"), "--channels", "1", "--out", &path("report.csv")];
        String::from_utf8_lossy(&succeed(simmim(2, &given, &[])).stdout).into_owned()
    };
    assert!(check().contains("5 images can be read"));
    std::fs::remove_file(path("report.csv/part-00001-of-00002.csv")).unwrap();
    let again = check();
    assert!(again.contains("is there already") && again.contains("5 images can be read"), "{again}");
    let refused = only_error(&finish(embed(2, "new.csv", &["--part", "0/2"]).spawn().unwrap()));
    assert!(refused.contains("--part is given, and a launcher has started several ranks"), "{refused}");
    std::fs::remove_dir_all(path("images")).unwrap();
    let missing = only_error(&finish(embed(2, "gone.csv", &[]).spawn().unwrap()));
    assert!(missing.contains("images"), "{missing}");
}
