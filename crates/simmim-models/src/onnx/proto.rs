//! ONNX models as bytes: the few messages of `onnx.proto3` that a graph needs, in the wire format of protocol buffers.
//!
//! A message is a row of fields; a field is `number << 3 | kind`, then a varint, or a length and bytes. Numbers of fields are those of
//! the ONNX specification (IR version 8).

/// The smallest version of the operators that has all those used here (`LayerNormalization`).
const OPSET: u64 = 17;
const IR_VERSION: u64 = 8;

/// Bytes of one message.
#[derive(Debug, Default, Clone)]
pub(super) struct Message(Vec<u8>);

impl Message {
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

    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.varint(field << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn text(&mut self, field: u64, text: &str) {
        self.bytes(field, text.as_bytes());
    }

    fn message(&mut self, field: u64, message: &Self) {
        self.bytes(field, &message.0);
    }
}

/// Type of the elements of a tensor.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    Float = 1,
    Bytes = 2,
    Integers = 7,
}

/// An attribute of a node.
#[derive(Debug, Clone, Copy)]
pub(super) enum Attribute<'a> {
    Int(i64),
    Float(f32),
    Ints(&'a [i64]),
}

fn attribute(name: &str, value: Attribute<'_>) -> Message {
    let mut m = Message::default();
    m.text(1, name);
    match value {
        Attribute::Float(v) => {
            m.varint(2 << 3 | 5);
            m.0.extend_from_slice(&v.to_le_bytes());
            m.number(20, 1);
        }
        Attribute::Int(v) => {
            m.number(3, v as u64);
            m.number(20, 2);
        }
        Attribute::Ints(values) => {
            values.iter().for_each(|&v| m.number(8, v as u64));
            m.number(20, 7);
        }
    }
    m
}

/// Extent of an axis in a signature.
#[derive(Debug, Clone, Copy)]
pub(super) enum Axis<'a> {
    Fixed(usize),
    Named(&'a str),
}

fn signature(name: &str, kind: Kind, axes: &[Axis<'_>]) -> Message {
    let mut shape = Message::default();
    for axis in axes {
        let mut dimension = Message::default();
        match *axis {
            Axis::Fixed(len) => dimension.number(1, len as u64),
            Axis::Named(name) => dimension.text(2, name),
        }
        shape.message(1, &dimension);
    }
    let (mut tensor, mut ty, mut value) = (Message::default(), Message::default(), Message::default());
    tensor.number(1, kind as u64);
    tensor.message(2, &shape);
    ty.message(1, &tensor);
    value.text(1, name);
    value.message(2, &ty);
    value
}

/// A graph under construction: its messages in the order in which they were added.
#[derive(Debug, Default)]
pub(super) struct GraphBuilder {
    graph: Message,
}

impl GraphBuilder {
    /// A node with one output.
    pub(super) fn node(&mut self, op: &str, inputs: &[&str], output: &str, attributes: &[(&str, Attribute<'_>)]) {
        let mut node = Message::default();
        inputs.iter().for_each(|input| node.text(1, input));
        node.text(2, output);
        node.text(3, output);
        node.text(4, op);
        attributes.iter().for_each(|(name, value)| node.message(5, &attribute(name, *value)));
        self.graph.message(1, &node);
    }

    /// A float tensor that is part of the model.
    pub(super) fn floats(&mut self, name: &str, shape: &[usize], data: &[f32]) {
        self.tensor(name, Kind::Float, shape, bytemuck::cast_slice(data));
    }

    /// An integer tensor that is part of the model.
    pub(super) fn integers(&mut self, name: &str, shape: &[usize], data: &[i64]) {
        self.tensor(name, Kind::Integers, shape, bytemuck::cast_slice(data));
    }

    fn tensor(&mut self, name: &str, kind: Kind, shape: &[usize], raw: &[u8]) {
        let mut tensor = Message::default();
        shape.iter().for_each(|&len| tensor.number(1, len as u64));
        tensor.number(2, kind as u64);
        tensor.text(8, name);
        tensor.bytes(9, raw);
        self.graph.message(5, &tensor);
    }

    pub(super) fn input(&mut self, name: &str, kind: Kind, axes: &[Axis<'_>]) {
        self.graph.message(11, &signature(name, kind, axes));
    }

    pub(super) fn output(&mut self, name: &str, axes: &[Axis<'_>]) {
        self.graph.message(12, &signature(name, Kind::Float, axes));
    }

    /// The whole model.
    pub(super) fn finish(mut self, name: &str, metadata: &[(String, String)]) -> Vec<u8> {
        self.graph.text(2, name);
        let (mut model, mut opset) = (Message::default(), Message::default());
        model.number(1, IR_VERSION);
        model.text(2, "simmim");
        model.text(3, env!("CARGO_PKG_VERSION"));
        model.message(7, &self.graph);
        opset.text(1, "");
        opset.number(2, OPSET);
        model.message(8, &opset);
        for (key, value) in metadata {
            let mut entry = Message::default();
            entry.text(1, key);
            entry.text(2, value);
            model.message(14, &entry);
        }
        model.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_encoded_as_protocol_buffers_do() {
        // Examples of the encoding guide: field 1 = 150, field 2 = "testing".
        let mut m = Message::default();
        m.number(1, 150);
        m.text(2, "testing");
        assert_eq!(m.0, [&[0x08, 0x96, 0x01, 0x12, 0x07][..], b"testing"].concat());
    }
}
