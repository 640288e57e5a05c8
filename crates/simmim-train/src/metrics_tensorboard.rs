//! Scalars for TensorBoard: event files beside `metrics.jsonl`.
//!
//! An event file is a sequence of records (TensorFlow's `TFRecord`): the length as `u64`, its masked CRC-32C, the contents,
//! their masked CRC-32C, all little-endian. The contents of each are one protobuf message `Event`, of which five fields are
//! needed here, so they are encoded by hand. Sources: `tensorflow/core/lib/io/record_writer.h`, `tensorflow/core/util/event.proto`,
//! `tensorflow/core/framework/summary.proto`.
//!
//! A run that is resumed opens a further file; TensorBoard reads the files of a folder in the order of their names. What the
//! earlier files hold past the resumed step is dropped by TensorBoard once it reads the message of [`EventWriter::resume`].

use crate::error::TrainError;
use std::fs::File;
use std::io::{BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// What the name of an event file starts with.
pub const FILE_PREFIX: &str = "events.out.tfevents.";

/// Version of the records; TensorBoard drops steps on a restart from version 2 on.
const FILE_VERSION: &str = "brain.Event:2";

/// Names tried before giving up on a folder; each holds the time in microseconds.
const ATTEMPTS: u32 = 100;

/// Appends scalars to a new event file of a folder.
///
/// Scalars reach the file at the latest with [`flush`](Self::flush) and when the writer is dropped.
#[derive(Debug)]
pub struct EventWriter {
    path: PathBuf,
    file: BufWriter<File>,
}

impl EventWriter {
    /// Starts a new event file in `folder`, which must exist. Files that are there already stay as they are.
    ///
    /// # Errors
    /// [`TrainError::Io`].
    pub fn open(folder: &Path) -> Result<Self, TrainError> {
        let (path, file) = create(folder)?;
        let mut writer = Self { path, file: BufWriter::new(file) };
        let mut event = Message::at(now(), 0);
        event.bytes(3, FILE_VERSION.as_bytes());
        writer.record(&event)?;
        writer.flush()?;
        Ok(writer)
    }

    /// As [`open`](Self::open), for a run that goes on after `step`: scalars of later steps in earlier files are no longer shown.
    ///
    /// # Errors
    /// [`TrainError::Io`].
    pub fn resume(folder: &Path, step: u64) -> Result<Self, TrainError> {
        const START: u64 = 1;
        let mut writer = Self::open(folder)?;
        let mut log = Message::default();
        log.number(1, START);
        let mut event = Message::at(now(), step.saturating_add(1));
        event.bytes(7, &log.0);
        writer.record(&event)?;
        writer.flush()?;
        Ok(writer)
    }

    /// Adds the value of a curve at a step. A `/` in the tag groups curves: `train/loss`.
    ///
    /// # Errors
    /// [`TrainError::Io`].
    pub fn scalar(&mut self, step: u64, tag: &str, value: f32) -> Result<(), TrainError> {
        let mut scalar = Message::default();
        scalar.bytes(1, tag.as_bytes());
        scalar.float(2, value);
        let mut summary = Message::default();
        summary.bytes(1, &scalar.0);
        let mut event = Message::at(now(), step);
        event.bytes(5, &summary.0);
        self.record(&event)
    }

    /// Hands all scalars to the operating system.
    ///
    /// # Errors
    /// [`TrainError::Io`].
    pub fn flush(&mut self) -> Result<(), TrainError> {
        self.file.flush().map_err(TrainError::io(&self.path))
    }

    /// The event file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn record(&mut self, message: &Message) -> Result<(), TrainError> {
        let length = (message.0.len() as u64).to_le_bytes();
        let parts: [&[u8]; 4] =
            [&length, &masked_checksum(&length).to_le_bytes(), &message.0, &masked_checksum(&message.0).to_le_bytes()];
        parts.iter().try_for_each(|part| self.file.write_all(part)).map_err(TrainError::io(&self.path))
    }
}

/// A new file whose name sorts after those of earlier times.
fn create(folder: &Path) -> Result<(PathBuf, File), TrainError> {
    let mut taken = None;
    for _ in 0..ATTEMPTS {
        let micros = (now() * 1e6) as u64;
        let name = format!("{FILE_PREFIX}{:010}.{:06}.simmim", micros / 1_000_000, micros % 1_000_000);
        let path = folder.join(name);
        match File::create_new(&path) {
            Ok(file) => return Ok((path, file)),
            Err(e) if e.kind() == ErrorKind::AlreadyExists => taken = Some((path, e)),
            Err(e) => return Err(TrainError::io(&path)(e)),
        }
        std::thread::sleep(std::time::Duration::from_micros(50));
    }
    let (path, e) = taken.unwrap_or_else(|| (folder.to_owned(), ErrorKind::AlreadyExists.into()));
    Err(TrainError::io(&path)(e))
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

/// CRC-32C, rotated and shifted so that a checksum of data which itself holds checksums stays useful.
fn masked_checksum(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// A protobuf message under construction.
#[derive(Debug, Default)]
struct Message(Vec<u8>);

impl Message {
    /// An `Event` with its time (seconds) and step.
    fn at(wall_time: f64, step: u64) -> Self {
        const EIGHT_BYTES: u64 = 1;
        let mut event = Self::default();
        event.varint(1 << 3 | EIGHT_BYTES);
        event.0.extend(wall_time.to_le_bytes());
        event.number(2, step);
        event
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn number(&mut self, field: u64, value: u64) {
        self.varint(field << 3);
        self.varint(value);
    }

    fn float(&mut self, field: u64, value: f32) {
        const FOUR_BYTES: u64 = 5;
        self.varint(field << 3 | FOUR_BYTES);
        self.0.extend(value.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, value: &[u8]) {
        const WITH_LENGTH: u64 = 2;
        self.varint(field << 3 | WITH_LENGTH);
        self.varint(value.len() as u64);
        self.0.extend(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A field of a message as read back.
    #[derive(Debug, Clone, PartialEq)]
    enum Field {
        Number(u64),
        Bits(Vec<u8>),
        Bytes(Vec<u8>),
    }

    fn varint(bytes: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..).step_by(7) {
            let (&byte, rest) = bytes.split_first().unwrap();
            *bytes = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
        }
        value
    }

    fn take<'a>(bytes: &mut &'a [u8], count: usize) -> &'a [u8] {
        let (head, rest) = bytes.split_at(count);
        *bytes = rest;
        head
    }

    fn fields(mut bytes: &[u8]) -> Vec<(u64, Field)> {
        let mut out = Vec::new();
        while !bytes.is_empty() {
            let key = varint(&mut bytes);
            let field = match key & 7 {
                0 => Field::Number(varint(&mut bytes)),
                1 => Field::Bits(take(&mut bytes, 8).to_vec()),
                2 => {
                    let length = varint(&mut bytes) as usize;
                    Field::Bytes(take(&mut bytes, length).to_vec())
                }
                5 => Field::Bits(take(&mut bytes, 4).to_vec()),
                kind => panic!("wire type {kind}"),
            };
            out.push((key >> 3, field));
        }
        out
    }

    fn field(message: &[u8], number: u64) -> Option<Field> {
        fields(message).into_iter().find(|(n, _)| *n == number).map(|(_, f)| f)
    }

    fn inner(message: &[u8], number: u64) -> Vec<u8> {
        match field(message, number) {
            Some(Field::Bytes(bytes)) => bytes,
            other => panic!("field {number}: {other:?}"),
        }
    }

    fn unmasked(masked: &[u8]) -> u32 {
        let masked = u32::from_le_bytes(masked.try_into().unwrap()).wrapping_sub(0xa282_ead8);
        masked.rotate_left(15)
    }

    fn records(path: &Path) -> Vec<Vec<u8>> {
        let whole = std::fs::read(path).unwrap();
        let (mut rest, mut out) = (&whole[..], Vec::new());
        while !rest.is_empty() {
            let length = take(&mut rest, 8);
            assert_eq!(unmasked(take(&mut rest, 4)), crc32c::crc32c(length));
            let data = take(&mut rest, u64::from_le_bytes(length.try_into().unwrap()) as usize);
            assert_eq!(unmasked(take(&mut rest, 4)), crc32c::crc32c(data));
            out.push(data.to_vec());
        }
        out
    }

    #[test]
    fn the_checksum_is_castagnoli_s() {
        // RFC 3720, B.4: 32 bytes of zeros.
        assert_eq!(crc32c::crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(unmasked(&masked_checksum(b"abc").to_le_bytes()), crc32c::crc32c(b"abc"));
    }

    #[test]
    fn scalars_are_read_back_as_written() {
        let folder = tempfile::tempdir().unwrap();
        let written =
            [(1, "train/loss", 0.75), (300, "train/lr", 1e-4), (u64::from(u32::MAX) + 7, "validate/loss", f32::NAN)];
        let mut writer = EventWriter::open(folder.path()).unwrap();
        for (step, tag, value) in written {
            writer.scalar(step, tag, value).unwrap();
        }
        let path = writer.path().to_owned();
        drop(writer);
        let records = records(&path);
        assert_eq!(inner(&records[0], 3), b"brain.Event:2");
        assert_eq!(records.len(), 1 + written.len());
        for (record, (step, tag, value)) in records[1..].iter().zip(written) {
            let scalar = inner(&inner(record, 5), 1);
            assert_eq!(field(record, 2), Some(Field::Number(step)));
            assert_eq!(inner(&scalar, 1), tag.as_bytes());
            assert_eq!(field(&scalar, 2), Some(Field::Bits(value.to_le_bytes().to_vec())));
            let Some(Field::Bits(time)) = field(record, 1) else { panic!("no time") };
            assert!((now() - f64::from_le_bytes(time.try_into().unwrap())).abs() < 60.0);
        }
    }

    #[test]
    fn a_resumed_run_opens_a_later_file_and_drops_steps_after_its_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        let first = EventWriter::open(folder.path()).unwrap().path().to_owned();
        let before = std::fs::read(&first).unwrap();
        let second = EventWriter::resume(folder.path(), 200).unwrap().path().to_owned();
        assert!(second.file_name() > first.file_name(), "{second:?} {first:?}");
        assert_eq!(std::fs::read(&first).unwrap(), before);
        let records = records(&second);
        assert_eq!(field(&records[1], 2), Some(Field::Number(201)));
        assert_eq!(fields(&inner(&records[1], 7)), [(1, Field::Number(1))]);
    }

    #[test]
    fn many_writers_of_one_folder_have_a_file_each() {
        let folder = tempfile::tempdir().unwrap();
        let writers: Vec<_> = (0..20).map(|_| EventWriter::open(folder.path()).unwrap()).collect();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), writers.len());
        let names = writers.iter().all(|w| w.path().file_name().unwrap().to_str().unwrap().starts_with(FILE_PREFIX));
        assert!(names);
    }

    #[test]
    fn a_missing_folder_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = EventWriter::open(&folder.path().join("gone")).unwrap_err();
        assert!(error.to_string().contains("gone"), "{error}");
    }
}
