//! Which images belong together: `--groups`.

use crate::diagnostics::Failure;
use regex::Regex;
use simmim_data::Source;
use std::collections::HashMap;
use std::path::Path;

const HELP: &str = "use `folder` (the folder of an image), a CSV or text file with a path and a group on each line, or a pattern with \
                    a capture for the name of an image, such as '^([a-z]+)_'";

/// How the group of an image is found.
#[derive(Debug)]
pub(crate) enum Groups {
    /// Its folder.
    Folder,
    /// The groups of paths, from a file.
    Named(HashMap<String, String>),
    /// What the first capture matches in the name of its file.
    Pattern(Regex),
}

/// The groups of some images.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Grouped {
    /// The number of each image's group.
    pub(crate) groups: Vec<usize>,
    /// Groups of which images were found.
    pub(crate) count: usize,
    /// Images without a group, each of which stands alone.
    pub(crate) alone: usize,
}

impl Groups {
    /// Understands the argument: a file where there is one of that name.
    pub(crate) fn open(text: &str) -> Result<Self, Failure> {
        let path = Path::new(text);
        if path.is_file() {
            return Ok(Self::Named(named(path)?));
        }
        if text == "folder" {
            return Ok(Self::Folder);
        }
        if !text.contains('(') {
            return Err(Failure::input(format!("--groups {text}: there is no such file"), HELP));
        }
        match Regex::new(text) {
            Ok(pattern) if pattern.captures_len() > 1 => Ok(Self::Pattern(pattern)),
            Ok(_) => Err(Failure::input(format!("--groups {text}: the pattern has no capture"), HELP)),
            Err(e) => Err(Failure::input(format!("--groups {text}: {e}"), HELP)),
        }
    }

    /// The group of an image by its name.
    fn of<'a>(&'a self, name: &'a str) -> Option<&'a str> {
        let (folder, file) = name.rsplit_once('/').unwrap_or(("", name));
        match self {
            Self::Folder => Some(folder).filter(|folder| !folder.is_empty()),
            Self::Named(known) => known.get(name).map(String::as_str),
            Self::Pattern(pattern) => Some(pattern.captures(file)?.get(1)?.as_str()),
        }
    }

    /// The groups of some images of a source. `argument` names them in errors.
    pub(crate) fn find(&self, source: &dyn Source, images: &[usize], argument: &str) -> Result<Grouped, Failure> {
        let names: Vec<String> = images.iter().map(|&image| source.name(image)).collect();
        let mut numbers: HashMap<&str, usize> = HashMap::new();
        let mut found: Vec<Option<usize>> = Vec::new();
        for name in &names {
            let next = numbers.len();
            found.push(self.of(name).map(|group| *numbers.entry(group).or_insert(next)));
        }
        let count = numbers.len();
        if count == 0 {
            let example = names.first().map(|name| format!(", such as {name}")).unwrap_or_default();
            return Err(Failure::input(
                format!("--groups {argument}: none of the {} training images belongs to a group{example}", names.len()),
                HELP,
            ));
        }
        let mut alone = 0;
        let groups = found.into_iter().map(|group| {
            group.unwrap_or_else(|| {
                alone += 1;
                count + alone - 1
            })
        });
        Ok(Grouped { groups: groups.collect(), count, alone })
    }
}

/// Reads lines of a path, as the source names it, and a group, with a tab or comma between.
fn named(path: &Path) -> Result<HashMap<String, String>, Failure> {
    let shown = path.display();
    let text = std::fs::read(path).map_err(|e| Failure::input(format!("{shown}: {e}"), HELP))?;
    let text = String::from_utf8(text).map_err(|_| Failure::input(format!("{shown}: the text is not UTF-8"), HELP))?;
    let tabs = text.contains('\t');
    let mut lines = csv::ReaderBuilder::new()
        .delimiter(if tabs { b'\t' } else { b',' })
        .has_headers(false)
        .flexible(true)
        .comment(Some(b'#'))
        .trim(csv::Trim::All)
        .from_reader(text.trim_start_matches('\u{feff}').as_bytes());
    let mut known = HashMap::new();
    for line in lines.records() {
        let line = line.map_err(|e| Failure::input(format!("{shown}: {e}"), HELP))?;
        let number = line.position().map_or(0, csv::Position::line);
        let (Some(image), Some(group), 2) = (line.get(0), line.get(1), line.len()) else {
            return Err(Failure::input(
                format!("{shown}, line {number}: {} values instead of a path and a group", line.len()),
                HELP,
            ));
        };
        let image = image.trim_start_matches("./").replace('\\', "/");
        match known.insert(image, group.to_owned()) {
            Some(before) if before != group => {
                let image = line.get(0).unwrap_or_default();
                let what = format!("{shown}, line {number}: {image} belongs to {before} and to {group}");
                return Err(Failure::input(what, "name each image once"));
            }
            _ => {}
        }
    }
    Ok(known)
}

#[cfg(test)]
mod tests {
    use super::*;
    use simmim_data::{Channels, DataError, Image};

    struct Names(Vec<&'static str>);

    impl Source for Names {
        fn len(&self) -> usize {
            self.0.len()
        }
        fn name(&self, index: usize) -> String {
            self.0[index].to_owned()
        }
        fn label(&self, _: usize) -> Option<usize> {
            None
        }
        fn class_names(&self) -> &[String] {
            &[]
        }
        fn load(&self, index: usize, _: Channels) -> Result<Image, DataError> {
            Err(DataError::OutOfRange { index, len: 0 })
        }
    }

    fn grouped(argument: &str) -> Result<Grouped, Failure> {
        let source = Names(vec!["a/x/cat_1.png", "a/x/cat_2.png", "a/y/dog_1.png", "b/x/dog_2.png", "top.png"]);
        Groups::open(argument)?.find(&source, &[0, 1, 2, 3, 4], argument)
    }

    fn found(groups: &[usize], count: usize, alone: usize) -> Grouped {
        Grouped { groups: groups.to_vec(), count, alone }
    }

    #[test]
    fn folders_files_and_patterns_name_groups_and_the_rest_stands_alone() {
        assert_eq!(grouped("folder").unwrap(), found(&[0, 0, 1, 2, 3], 3, 1));
        assert_eq!(grouped("^([a-z]+)_").unwrap(), found(&[0, 0, 1, 1, 2], 2, 1));
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("groups.csv");
        let argument = file.to_str().unwrap();
        std::fs::write(&file, "path,group\n# a comment\na/x/cat_1.png, one\n./top.png,one\nb/x/dog_2.png,two\n")
            .unwrap();
        assert_eq!(grouped(argument).unwrap(), found(&[0, 2, 3, 1, 0], 2, 2));
        std::fs::write(&file, "a/x/cat_1.png\tp, q\na/y/dog_1.png\tp, q\n").unwrap();
        assert_eq!(grouped(argument).unwrap(), found(&[0, 1, 0, 2, 3], 1, 3));
    }

    #[test]
    fn what_names_no_group_is_refused_with_what_would() {
        let folder = tempfile::tempdir().unwrap();
        let file = |text: &str| {
            let path = folder.path().join(format!("{}.txt", text.len()));
            std::fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        };
        for (argument, message) in [
            ("fodler".to_owned(), "there is no such file"),
            ("(cat".to_owned(), "unclosed group"),
            (r"\(cat".to_owned(), "has no capture"),
            ("^(bird)".to_owned(), "none of the 5 training images belongs to a group, such as a/x/cat_1.png"),
            (file("elsewhere/cat_1.png,one\n"), "none of the 5 training images"),
            (file("a/x/cat_1.png\n"), "line 1: 1 values instead of a path and a group"),
            (file("a/x/cat_1.png,one\na/x/cat_1.png,two\n"), "belongs to one and to two"),
        ] {
            let error = grouped(&argument).unwrap_err();
            assert!(format!("{error:?}").contains(message), "{argument}: {error:?}");
        }
    }
}
