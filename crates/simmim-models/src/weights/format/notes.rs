//! What a checkpoint says besides its tensors, as JSON: options of the training, epoch, accuracy.

use super::pickle::{Id, Node, Pickle};
use serde_json::{Map, Value};

/// Depth and number of values that are kept: options are small, and an object that holds itself must end somewhere.
const DEEPEST: usize = 6;
const MOST: usize = 4000;
const LONGEST_LIST: usize = 64;

/// Parts that say nothing about the model and may be large.
const LEFT_OUT: [&str; 4] = ["optimizer", "scaler", "amp", "lr_scheduler"];

/// The values of the root without its tensors. Objects of unknown classes count as their items or attributes.
pub(super) fn of(pickle: &Pickle, root: Id, is_tensor: &dyn Fn(Id) -> bool) -> Value {
    let mut left = MOST;
    let mut notes = Map::new();
    for (key, value) in pickle.items(root).unwrap_or_default() {
        if let Some(name) = pickle.text(*key)
            && !LEFT_OUT.contains(&name)
            && let Some(value) = convert(pickle, *value, is_tensor, 0, &mut left)
        {
            notes.insert(name.to_owned(), value);
        }
    }
    Value::Object(notes)
}

fn convert(p: &Pickle, id: Id, is_tensor: &dyn Fn(Id) -> bool, depth: usize, left: &mut usize) -> Option<Value> {
    *left = left.checked_sub(1)?;
    if depth > DEEPEST || is_tensor(id) {
        return None;
    }
    Some(match p.node(id) {
        Node::None => Value::Null,
        Node::Bool(v) => Value::from(*v),
        Node::Int(v) => Value::from(*v),
        Node::Float(v) => Value::from(*v),
        Node::Text(v) => Value::from(&**v),
        Node::Sequence(items) if items.len() <= LONGEST_LIST => {
            items.iter().filter_map(|&i| convert(p, i, is_tensor, depth + 1, left)).collect()
        }
        Node::Dict(_) | Node::Object(_) => {
            let items = p.items(id)?;
            let mut map = Map::new();
            for (key, value) in items {
                if let Some(name) = p.text(*key)
                    && let Some(value) = convert(p, *value, is_tensor, depth + 1, left)
                {
                    map.insert(name.to_owned(), value);
                }
            }
            if map.is_empty() {
                return None;
            }
            Value::Object(map)
        }
        _ => return None,
    })
}
