//! Pickles as data: a machine that builds objects and never calls anything.
//!
//! A pickle is a program for a stack machine (Python's `pickletools` describes the instructions). Two of them, `REDUCE` and `BUILD`, ask
//! Python to call functions; here they only record what would have been called ([`Node::Object`]), whatever it is, so a hostile pickle
//! runs nothing and a class that nobody has is no obstacle. What the few calls that make tensors mean is decided in
//! [`super::torch`].
//!
//! Memory is bounded: by the number of instructions, of objects and of text bytes. Objects live in one list and name each other by
//! their place in it, so a memo that refers to itself is just data; whoever walks through them bounds the depth.

use std::collections::HashMap;
use std::io::{BufRead, Read};

/// Place of an object among all of a pickle.
pub(super) type Id = u32;

/// Largest number of instructions: a checkpoint of a thousand tensors with its optimiser has some tens of thousands.
const MOST_INSTRUCTIONS: usize = 8 << 20;
/// Largest number of objects.
const MOST_OBJECTS: usize = 4 << 20;
/// Most bytes of text, and of raw bytes that are passed over.
const MOST_TEXT: u64 = 64 << 20;

/// An object of a pickle.
#[derive(Debug, Clone)]
pub(super) enum Node {
    None,
    Bool(bool),
    Int(i64),
    /// An integer beyond 64 bits; kept as its little-endian bytes, which is all that is asked of it.
    Long(Box<[u8]>),
    Float(f64),
    Text(Box<str>),
    /// Raw bytes, of which nothing is needed.
    Bytes,
    /// A list, a tuple or a set.
    Sequence(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// A class or function by module and name.
    Global(Box<str>, Box<str>),
    /// Something kept outside the pickle.
    Persistent(Id),
    /// What a call would have returned, and what was done to it.
    Object(Box<Object>),
}

/// The result of a call that was not made.
#[derive(Debug, Clone)]
pub(super) struct Object {
    /// The class or function.
    pub(super) callable: Id,
    /// Its arguments.
    pub(super) arguments: Id,
    /// The state that was set, usually its attributes.
    pub(super) state: Option<Id>,
    /// Items that were set, of a subclass of `dict`.
    pub(super) items: Vec<(Id, Id)>,
    /// Elements that were appended, of a subclass of `list`.
    pub(super) elements: Vec<Id>,
}

/// A whole pickle.
#[derive(Debug)]
pub(super) struct Pickle {
    nodes: Vec<Node>,
    root: Id,
}

impl Pickle {
    /// Number of objects.
    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    pub(super) fn root(&self) -> Id {
        self.root
    }

    pub(super) fn node(&self, id: Id) -> &Node {
        &self.nodes[id as usize]
    }

    pub(super) fn text(&self, id: Id) -> Option<&str> {
        if let Node::Text(text) = self.node(id) { Some(text) } else { None }
    }

    pub(super) fn int(&self, id: Id) -> Option<i64> {
        match self.node(id) {
            Node::Int(v) => Some(*v),
            Node::Bool(v) => Some(i64::from(*v)),
            _ => None,
        }
    }

    pub(super) fn sequence(&self, id: Id) -> Option<&[Id]> {
        if let Node::Sequence(items) = self.node(id) { Some(items) } else { None }
    }

    /// Module and name of a class or function.
    pub(super) fn global(&self, id: Id) -> Option<(&str, &str)> {
        if let Node::Global(module, name) = self.node(id) { Some((module, name)) } else { None }
    }

    /// The class or function of an object that a call would have made.
    pub(super) fn class(&self, id: Id) -> Option<(&str, &str)> {
        if let Node::Object(object) = self.node(id) { self.global(object.callable) } else { None }
    }

    /// The items of a dictionary, of a subclass of one, or the attributes of an object.
    pub(super) fn items(&self, id: Id) -> Option<&[(Id, Id)]> {
        match self.node(id) {
            Node::Dict(items) => Some(items),
            Node::Object(object) if !object.items.is_empty() => Some(&object.items),
            Node::Object(object) => match (self.class(id), object.state.map(|state| self.node(state))) {
                // An empty one, made by a call.
                (Some(("collections", "OrderedDict")), _) => Some(&[]),
                (_, Some(Node::Dict(items))) => Some(items),
                _ => None,
            },
            _ => None,
        }
    }

    /// What a dictionary or an object holds under a name.
    pub(super) fn get(&self, id: Id, name: &str) -> Option<Id> {
        self.items(id)?.iter().rev().find(|(key, _)| self.text(*key) == Some(name)).map(|(_, value)| *value)
    }
}

/// What is wrong with a pickle, in a few words.
pub(super) type Fault = String;
type Result<T> = std::result::Result<T, Fault>;

fn fault<T>(what: impl Into<String>) -> Result<T> {
    Err(what.into())
}

/// Reads one pickle and stops behind it.
pub(super) fn read(input: &mut dyn BufRead) -> Result<Pickle> {
    let mut machine =
        Machine { input, nodes: Vec::new(), stack: Vec::new(), marks: Vec::new(), memo: HashMap::new(), text: 0 };
    for _ in 0..MOST_INSTRUCTIONS {
        let code = machine.byte()?;
        if code == b'.' {
            let root = machine.pop()?;
            return Ok(Pickle { nodes: machine.nodes, root });
        }
        machine.step(code)?;
    }
    fault(format!("it has more than {MOST_INSTRUCTIONS} instructions"))
}

struct Machine<'a> {
    input: &'a mut dyn BufRead,
    nodes: Vec<Node>,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
    text: u64,
}

impl Machine<'_> {
    fn step(&mut self, code: u8) -> Result<()> {
        match code {
            0x80 => self.skip(1),
            0x95 => self.skip(8),
            b'(' => {
                self.marks.push(self.stack.len());
                Ok(())
            }
            b'0' => self.pop().map(drop),
            b'1' => self.since_mark().map(drop),
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
                Ok(())
            }
            b'N' | 0x88 | 0x89 | b'I' | b'J' | b'K' | b'M' | b'L' | 0x8a | 0x8b | b'F' | b'G' => self.number(code),
            b'S' | b'T' | b'U' | b'V' | b'X' | 0x8c | 0x8d | b'B' | b'C' | 0x8e | 0x96 => self.string(code),
            b']' | b'l' | b')' | b't' | 0x85 | 0x86 | 0x87 | 0x8f | 0x91 | b'}' | b'd' => self.container(code),
            b'a' | b'e' | 0x90 | b's' | b'u' => self.fill(code),
            b'c' | 0x93 | b'R' | b'b' | b'i' | b'o' | 0x81 | 0x92 | b'P' | b'Q' => self.call(code),
            b'g' | b'h' | b'j' | b'p' | b'q' | b'r' | 0x94 => self.remember(code),
            0x97 | 0x98 | 0x82..=0x84 => fault(format!("instruction {code:#04x} refers to what is outside the file")),
            _ => fault(format!("there is no instruction {code:#04x}")),
        }
    }

    fn number(&mut self, code: u8) -> Result<()> {
        let node = match code {
            b'N' => Node::None,
            0x88 => Node::Bool(true),
            0x89 => Node::Bool(false),
            b'J' => Node::Int(i64::from(i32::from_le_bytes(self.array()?))),
            b'K' => Node::Int(i64::from(self.byte()?)),
            b'M' => Node::Int(i64::from(u16::from_le_bytes(self.array()?))),
            b'G' => Node::Float(f64::from_be_bytes(self.array()?)),
            0x8a => {
                let len = u64::from(self.byte()?);
                self.long(len)?
            }
            0x8b => {
                let len = u64::from(u32::from_le_bytes(self.array()?));
                self.long(len)?
            }
            b'F' => {
                let line = self.line()?;
                Node::Float(line.trim().parse().map_err(|_| format!("`{line}` is no number"))?)
            }
            _ => {
                let line = self.line()?;
                match line.trim().trim_end_matches('L') {
                    "00" => Node::Bool(false),
                    "01" => Node::Bool(true),
                    text => text.parse().map_or_else(|_| Node::Long(text.as_bytes().into()), Node::Int),
                }
            }
        };
        self.push(node)
    }

    /// An integer of so many little-endian bytes, two's complement.
    fn long(&mut self, len: u64) -> Result<Node> {
        let bytes = self.bytes(len)?;
        if bytes.len() > 8 {
            return Ok(Node::Long(bytes.into()));
        }
        let filler = if bytes.last().is_some_and(|b| b & 0x80 != 0) { 0xff } else { 0 };
        let mut whole = [filler; 8];
        whole[..bytes.len()].copy_from_slice(&bytes);
        Ok(Node::Int(i64::from_le_bytes(whole)))
    }

    fn string(&mut self, code: u8) -> Result<()> {
        let len = match code {
            b'S' | b'V' => {
                let line = self.line()?;
                let line = line.trim_end_matches('\r');
                let bare = line.strip_prefix(['\'', '"']).and_then(|l| l.strip_suffix(['\'', '"'])).unwrap_or(line);
                return self.push(Node::Text(bare.into()));
            }
            b'U' | 0x8c | b'C' => u64::from(self.byte()?),
            b'T' | b'X' | b'B' => u64::from(u32::from_le_bytes(self.array()?)),
            _ => u64::from_le_bytes(self.array()?),
        };
        if matches!(code, b'B' | b'C' | 0x8e | 0x96) {
            self.skip(len)?;
            return self.push(Node::Bytes);
        }
        let bytes = self.bytes(len)?;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        self.push(Node::Text(text.into()))
    }

    fn container(&mut self, code: u8) -> Result<()> {
        let node = match code {
            b']' | b')' | 0x8f => Node::Sequence(Vec::new()),
            b'l' | b't' | 0x91 => Node::Sequence(self.since_mark()?),
            b'}' => Node::Dict(Vec::new()),
            b'd' => Node::Dict(pairs(&self.since_mark()?)?),
            _ => {
                let len = usize::from(code - 0x84);
                let from = self.reach(len)?;
                Node::Sequence(self.stack.split_off(from))
            }
        };
        self.push(node)
    }

    /// Appends to a sequence, sets items of a dictionary, or does so to an object that is a subclass of one.
    fn fill(&mut self, code: u8) -> Result<()> {
        let values = match code {
            b'a' => vec![self.pop()?],
            b's' => {
                let from = self.reach(2)?;
                self.stack.split_off(from)
            }
            _ => self.since_mark()?,
        };
        let items = if matches!(code, b's' | b'u') { Some(pairs(&values)?) } else { None };
        let target = self.top()?;
        match (&mut self.nodes[target as usize], items) {
            (Node::Sequence(elements), None) => elements.extend(values),
            (Node::Object(object), None) => object.elements.extend(values),
            (Node::Dict(known), Some(items)) => known.extend(items),
            (Node::Object(object), Some(items)) => object.items.extend(items),
            _ => return fault("it fills something that is no container"),
        }
        Ok(())
    }

    fn call(&mut self, code: u8) -> Result<()> {
        match code {
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.push(Node::Global(module.into(), name.into()))
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                match (&self.nodes[module as usize], &self.nodes[name as usize]) {
                    (Node::Text(module), Node::Text(name)) => {
                        let global = Node::Global(module.clone(), name.clone());
                        self.charge(global_len(&global))?;
                        self.push(global)
                    }
                    _ => fault("the name of a class is no text"),
                }
            }
            b'R' | 0x81 => {
                let (arguments, callable) = (self.pop()?, self.pop()?);
                self.object(callable, arguments)
            }
            0x92 => {
                let (_, arguments, callable) = (self.pop()?, self.pop()?, self.pop()?);
                self.object(callable, arguments)
            }
            b'i' => {
                let (module, name) = (self.line()?, self.line()?);
                let arguments = Node::Sequence(self.since_mark()?);
                self.push(Node::Global(module.into(), name.into()))?;
                self.push(arguments)?;
                self.step(b'R')
            }
            b'o' => {
                let mut values = self.since_mark()?;
                if values.is_empty() {
                    return fault("an object without a class");
                }
                let callable = values.remove(0);
                self.stack.push(callable);
                self.push(Node::Sequence(values))?;
                self.step(b'R')
            }
            b'b' => {
                let state = self.pop()?;
                let target = self.top()?;
                // Attributes of a plain dictionary (`_metadata` of a state dict) say nothing about tensors.
                if let Node::Object(object) = &mut self.nodes[target as usize] {
                    object.state = Some(state);
                }
                Ok(())
            }
            b'P' => {
                let line = self.line()?;
                self.push(Node::Text(line.into()))?;
                self.step(b'Q')
            }
            _ => {
                let name = self.pop()?;
                self.push(Node::Persistent(name))
            }
        }
    }

    fn object(&mut self, callable: Id, arguments: Id) -> Result<()> {
        let object = Object { callable, arguments, state: None, items: Vec::new(), elements: Vec::new() };
        self.push(Node::Object(Box::new(object)))
    }

    fn remember(&mut self, code: u8) -> Result<()> {
        let number = |line: String| line.trim().parse::<u32>().map_err(|_| format!("`{line}` is no place of the memo"));
        let place = match code {
            b'g' | b'p' => number(self.line()?)?,
            b'h' | b'q' => u32::from(self.byte()?),
            b'j' | b'r' => u32::from_le_bytes(self.array()?),
            _ => self.memo.len() as u32,
        };
        if matches!(code, b'g' | b'h' | b'j') {
            let known = *self.memo.get(&place).ok_or_else(|| format!("the memo has no entry {place}"))?;
            self.stack.push(known);
        } else {
            let top = self.top()?;
            self.memo.insert(place, top);
        }
        Ok(())
    }

    fn push(&mut self, node: Node) -> Result<()> {
        if self.nodes.len() >= MOST_OBJECTS {
            return fault(format!("it holds more than {MOST_OBJECTS} objects"));
        }
        self.stack.push(self.nodes.len() as Id);
        self.nodes.push(node);
        Ok(())
    }

    /// Where the last `len` objects of the stack start; those below a mark are not there.
    fn reach(&self, len: usize) -> Result<usize> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.len().checked_sub(len) {
            Some(from) if from >= floor => Ok(from),
            _ => fault("it takes more from the stack than there is"),
        }
    }

    fn pop(&mut self) -> Result<Id> {
        let from = self.reach(1)?;
        Ok(self.stack.remove(from))
    }

    fn top(&self) -> Result<Id> {
        Ok(self.stack[self.reach(1)?])
    }

    fn since_mark(&mut self) -> Result<Vec<Id>> {
        match self.marks.pop() {
            Some(mark) => Ok(self.stack.split_off(mark)),
            None => fault("it goes back to a mark that is not there"),
        }
    }

    fn charge(&mut self, bytes: u64) -> Result<()> {
        self.text = self.text.saturating_add(bytes);
        if self.text > MOST_TEXT { fault(format!("it holds more than {MOST_TEXT} bytes of text")) } else { Ok(()) }
    }

    fn byte(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.input.read_exact(&mut bytes).map_err(ended)?;
        Ok(bytes)
    }

    /// So many bytes; the room for them grows as they come.
    fn bytes(&mut self, len: u64) -> Result<Vec<u8>> {
        self.charge(len)?;
        let mut bytes = Vec::new();
        (&mut *self.input).take(len).read_to_end(&mut bytes).map_err(ended)?;
        if bytes.len() as u64 == len { Ok(bytes) } else { fault("it ends early") }
    }

    fn skip(&mut self, len: u64) -> Result<()> {
        let mut rest = (&mut *self.input).take(len);
        let passed = std::io::copy(&mut rest, &mut std::io::sink()).map_err(ended)?;
        if passed == len { Ok(()) } else { fault("it ends early") }
    }

    fn line(&mut self) -> Result<String> {
        const LONGEST: u64 = 1 << 16;
        let mut line = Vec::new();
        (&mut *self.input).take(LONGEST).read_until(b'\n', &mut line).map_err(ended)?;
        self.charge(line.len() as u64)?;
        match line.pop() {
            Some(b'\n') => Ok(String::from_utf8_lossy(&line).into_owned()),
            _ => fault("a line of it does not end"),
        }
    }
}

fn ended(e: std::io::Error) -> Fault {
    if e.kind() == std::io::ErrorKind::UnexpectedEof { "it ends early".to_owned() } else { e.to_string() }
}

fn global_len(node: &Node) -> u64 {
    if let Node::Global(module, name) = node { (module.len() + name.len()) as u64 } else { 0 }
}

fn pairs(values: &[Id]) -> Result<Vec<(Id, Id)>> {
    let (pairs, rest) = values.as_chunks::<2>();
    if rest.is_empty() { Ok(pairs.iter().map(|p| (p[0], p[1])).collect()) } else { fault("a key without a value") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(bytes: &[u8]) -> Result<Pickle> {
        read(&mut &bytes[..])
    }

    #[test]
    fn a_command_is_data() {
        let marker = std::env::temp_dir().join(format!("simmim-pickle-{}", std::process::id()));
        let command = format!("cposix\nsystem\n(S'touch {}'\ntR.", marker.display());
        let found = parse(command.as_bytes()).unwrap();
        assert_eq!(found.class(found.root()), Some(("posix", "system")));
        assert!(!marker.exists());
    }

    #[test]
    fn numbers_texts_and_containers_are_read_in_every_notation() {
        // {"a": [1, -1, 300, 1.5, True, None], "b": (2**40,)}, protocols 0 and 4.
        let zero = b"(dVa\n(lI1\naI-1\naI300\naF1.5\naI01\naNasVb\n(L1099511627776L\nts.";
        let four = b"\x80\x04}(\x8c\x01a](K\x01J\xff\xff\xff\xffM,\x01G?\xf8\x00\x00\x00\x00\x00\x00\x88Ne\x8c\x01b\x8a\x06\x00\x00\x00\x00\x00\x01\x85u.";
        for bytes in [&zero[..], &four[..]] {
            let p = parse(bytes).unwrap();
            let list = p.sequence(p.get(p.root(), "a").unwrap()).unwrap();
            assert_eq!(list[..3].iter().map(|&i| p.int(i).unwrap()).collect::<Vec<_>>(), [1, -1, 300]);
            assert!(matches!(p.node(list[3]), Node::Float(v) if *v == 1.5));
            assert!(matches!((p.node(list[4]), p.node(list[5])), (Node::Bool(true), Node::None)));
            let tuple = p.sequence(p.get(p.root(), "b").unwrap()).unwrap();
            assert_eq!(p.int(tuple[0]), Some(1 << 40));
        }
    }

    #[test]
    fn a_memo_that_holds_itself_and_one_that_doubles_are_only_data() {
        let looped = parse(b"]q\x00h\x00a.").unwrap();
        assert_eq!(looped.sequence(looped.root()), Some(&[looped.root()][..]));
        let mut doubling = b"]q\x00".to_vec();
        for _ in 0..10_000 {
            doubling.extend(b"h\x00h\x00\x86q\x00");
        }
        doubling.push(b'.');
        assert_eq!(parse(&doubling).unwrap().nodes.len(), 10_001);
    }

    #[test]
    fn what_is_endless_is_refused() {
        let many = [&b"N0".repeat(MOST_INSTRUCTIONS)[..], b"."].concat();
        assert!(parse(&many).unwrap_err().contains("instructions"));
        let objects = b"N".repeat(MOST_OBJECTS + 1);
        assert!(parse(&objects).unwrap_err().contains("objects"));
        assert!(parse(b"X\xff\xff\xff\x7fabc").unwrap_err().contains("bytes of text"));
        assert!(parse(b"B\xff\xff\xff\x7fabc").unwrap_err().contains("ends early"));
    }

    #[test]
    fn nonsense_is_refused() {
        for bytes in
            [&b""[..], b".", b"K\x01", b"(t", b"h\x05.", b"K\x01a.", b"\xff", b"(K\x01d.", b"0", b"e.", b"\x82\x01."]
        {
            assert!(parse(bytes).is_err(), "{bytes:?}");
        }
    }
}
