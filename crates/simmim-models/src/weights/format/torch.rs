//! What the pickle of a PyTorch checkpoint means: which calls make tensors, and where the state dict is.

use super::pickle::{Id, Node, Pickle};
use super::{Element, Entry};
use std::collections::BTreeMap;

/// Where a storage lies in the file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Storage {
    /// First byte.
    pub(super) start: u64,
    /// Number of bytes.
    pub(super) bytes: u64,
}

/// A tensor as the pickle describes it.
struct View {
    key: String,
    element: Element,
    offset: u64,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

/// Type of the elements of a storage class or a `torch.dtype`.
fn element(name: &str) -> Option<Element> {
    Some(match name {
        "DoubleStorage" | "float64" | "double" => Element::F64,
        "FloatStorage" | "float32" | "float" => Element::F32,
        "HalfStorage" | "float16" | "half" => Element::F16,
        "BFloat16Storage" | "bfloat16" => Element::BF16,
        "LongStorage" | "int64" | "long" => Element::I64,
        "IntStorage" | "int32" | "int" => Element::I32,
        "ShortStorage" | "int16" | "short" => Element::I16,
        "CharStorage" | "int8" => Element::I8,
        "ByteStorage" | "UntypedStorage" | "uint8" => Element::U8,
        "BoolStorage" | "bool" => Element::Bool,
        "ComplexFloatStorage" | "complex64" => Element::Other { bytes: 8 },
        "ComplexDoubleStorage" | "complex128" => Element::Other { bytes: 16 },
        "QInt8Storage" | "QUInt8Storage" => Element::Other { bytes: 1 },
        "QInt32Storage" => Element::Other { bytes: 4 },
        _ => return None,
    })
}

/// A storage as `persistent_load` is told of it: `("storage", class, key, place, elements, view)`. How long it is says the file.
pub(super) struct StorageName {
    pub(super) key: String,
    pub(super) element: Element,
}

/// Depth to which nested calls are followed (a parameter around a tensor, a subclass around that).
const DEEPEST: usize = 8;

/// The root of a checkpoint.
pub(super) struct Checkpoint<'a>(pub(super) &'a Pickle);

impl Checkpoint<'_> {
    pub(super) fn storage(&self, id: Id) -> Option<StorageName> {
        let p = self.0;
        let Node::Persistent(name) = p.node(id) else { return None };
        let parts = p.sequence(*name)?;
        let [kind, class, key, ..] = parts else { return None };
        if p.text(*kind) != Some("storage") {
            return None;
        }
        let class = match p.node(*class) {
            Node::Text(name) => name,
            Node::Global(_, name) => name,
            _ => return None,
        };
        let element = element(class)?;
        Some(StorageName { key: p.text(*key)?.to_owned(), element })
    }

    /// The tensor that an object is; an error where it is one but makes no sense.
    fn tensor(&self, id: Id, depth: usize) -> Option<Result<View, String>> {
        let p = self.0;
        let Node::Object(object) = p.node(id) else { return None };
        let arguments = p.sequence(object.arguments)?;
        match p.global(object.callable)? {
            ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => Some(self.view(arguments, None)),
            ("torch._utils", "_rebuild_tensor_v3") => {
                let kind = arguments.get(6).and_then(|id| p.global(*id)).and_then(|(_, name)| element(name));
                Some(kind.ok_or_else(|| "its type is not known".to_owned()).and_then(|e| self.view(arguments, Some(e))))
            }
            ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") if depth < DEEPEST => {
                self.tensor(*arguments.first()?, depth + 1)
            }
            ("torch._tensor", "_rebuild_from_type_v2") if depth < DEEPEST => {
                let function = p.global(*arguments.first()?)?;
                let inner = p.sequence(*arguments.get(2)?)?;
                match function {
                    ("torch._utils", "_rebuild_tensor_v2" | "_rebuild_tensor") => Some(self.view(inner, None)),
                    ("torch._utils", "_rebuild_parameter") => self.tensor(*inner.first()?, depth + 1),
                    _ => None,
                }
            }
            _ => None,
        }
    }

    /// `(storage, offset, shape, strides, ...)`.
    fn view(&self, arguments: &[Id], element: Option<Element>) -> Result<View, String> {
        let p = self.0;
        let [storage, offset, shape, strides, ..] = arguments else { return Err("it lacks arguments".into()) };
        let storage = self.storage(*storage).ok_or("its storage is not known")?;
        let sizes = |id: Id| -> Option<Vec<usize>> {
            // A `torch.Size` is a tuple behind a call.
            let id = match p.node(id) {
                Node::Object(o) => *p.sequence(o.arguments)?.first()?,
                _ => id,
            };
            p.sequence(id)?.iter().map(|&v| p.int(v).and_then(|v| usize::try_from(v).ok())).collect()
        };
        let offset = p.int(*offset).and_then(|v| u64::try_from(v).ok()).ok_or("its offset is no number")?;
        let shape = sizes(*shape).ok_or("its shape is no list of numbers")?;
        let strides = sizes(*strides).ok_or("its strides are no list of numbers")?;
        let element = element.unwrap_or(storage.element);
        Ok(View { key: storage.key, element, offset, shape, strides })
    }

    /// All tensors directly in a dictionary, under their names, and those of modules in it.
    fn tensors(&self, id: Id) -> Vec<(String, Result<View, String>)> {
        let p = self.0;
        let named = |(key, value): &(Id, Id)| Some((p.text(*key)?.to_owned(), self.tensor(*value, 0)?));
        let direct: Vec<_> = p.items(id).unwrap_or_default().iter().filter_map(named).collect();
        if !direct.is_empty() || p.get(id, "_modules").is_none() {
            return direct;
        }
        let mut found = Vec::new();
        self.module(id, "", 0, &mut found);
        found
    }

    /// Parameters and buffers of a whole module, as its `state_dict` names them.
    fn module(&self, id: Id, prefix: &str, depth: usize, found: &mut Vec<(String, Result<View, String>)>) {
        const MOST: usize = 100_000;
        let p = self.0;
        for part in ["_parameters", "_buffers"] {
            let items = p.get(id, part).and_then(|part| p.items(part)).unwrap_or_default();
            for (key, value) in items {
                if let (Some(key), Some(tensor)) = (p.text(*key), self.tensor(*value, 0)) {
                    found.push((format!("{prefix}{key}"), tensor));
                }
            }
        }
        let children = p.get(id, "_modules").and_then(|part| p.items(part)).unwrap_or_default();
        for (key, child) in children {
            if let Some(key) = p.text(*key)
                && depth < 32
                && found.len() < MOST
            {
                self.module(*child, &format!("{prefix}{key}."), depth + 1, found);
            }
        }
    }
}

/// Names under which checkpoints keep their state dict, the ones taken first before the others: averaged weights are what papers report, and
/// timm's own loader prefers them too.
const PLACES: [&str; 12] = [
    "state_dict_ema",
    "model_ema",
    "ema",
    "teacher",
    "model",
    "state_dict",
    "model_state_dict",
    "module",
    "network",
    "net",
    "encoder",
    "student",
];

/// Averages among [`PLACES`].
const AVERAGES: [&str; 4] = ["state_dict_ema", "model_ema", "ema", "teacher"];

/// The tensors of a checkpoint with what else it says.
pub(super) struct Contents {
    pub(super) tensors: BTreeMap<String, Entry>,
    /// Name of the state dict that was taken, and of others that were not.
    pub(super) taken: Option<String>,
    pub(super) passed_over: Vec<String>,
    pub(super) notes: serde_json::Value,
}

/// Finds the state dict and places its tensors in the file.
pub(super) fn contents(pickle: &Pickle, storages: &dyn Fn(&str) -> Option<Storage>) -> Result<Contents, String> {
    let checkpoint = Checkpoint(pickle);
    let root = pickle.root();
    let mut found = checkpoint.tensors(root);
    let (mut taken, mut passed_over) = (None, Vec::new());
    if found.is_empty() {
        let known = PLACES.iter().filter_map(|name| Some((*name, pickle.get(root, name)?)));
        let others = pickle.items(root).unwrap_or_default().iter();
        let others = others.filter_map(|(key, value)| Some((pickle.text(*key)?, *value)));
        let others = others.filter(|(name, _)| !PLACES.contains(name) && *name != "optimizer");
        for (name, id) in known.chain(others) {
            let inside = checkpoint.tensors(id);
            // An average may be kept in an object around the state dict.
            let nested = || pickle.get(id, "module").or_else(|| pickle.get(id, "state_dict"));
            let inside = if inside.is_empty() { nested().map_or(inside, |id| checkpoint.tensors(id)) } else { inside };
            if inside.is_empty() {
                continue;
            }
            if taken.is_none() {
                (taken, found) = (Some(name.to_owned()), inside);
            } else if PLACES.contains(&name) {
                passed_over.push(name.to_owned());
            }
        }
    }
    if found.is_empty() {
        let names = pickle.items(root).unwrap_or_default().iter().filter_map(|(key, _)| pickle.text(*key));
        let names: Vec<&str> = names.take(8).collect();
        return Err(if names.is_empty() {
            "it holds no dictionary of tensors".to_owned()
        } else {
            format!("it holds no tensors under {}", names.join(", "))
        });
    }
    let mut tensors = BTreeMap::new();
    for (name, view) in found {
        let placed = view.and_then(|view| place(view, storages)).map_err(|what| format!("{name}: {what}"))?;
        tensors.insert(name, placed);
    }
    let notes = super::notes::of(pickle, root, &|id| checkpoint.tensor(id, 0).is_some());
    Ok(Contents { tensors, taken, passed_over, notes })
}

/// Whether the name is one of an average.
pub(super) fn is_average(name: &str) -> bool {
    AVERAGES.contains(&name)
}

fn place(view: View, storages: &dyn Fn(&str) -> Option<Storage>) -> Result<Entry, String> {
    let storage = storages(&view.key).ok_or_else(|| format!("its storage `{}` is not in the file", view.key))?;
    if view.strides.len() != view.shape.len() {
        return Err(format!("{} strides for {} axes", view.strides.len(), view.shape.len()));
    }
    let bytes = view.element.bytes() as u64;
    // The last element that the view reaches.
    let reach = view.shape.iter().zip(&view.strides).try_fold(0u64, |sum, (&len, &stride)| {
        let steps = (len as u64).saturating_sub(1);
        steps.checked_mul(stride as u64).and_then(|far| sum.checked_add(far))
    });
    let empty = view.shape.contains(&0);
    let end = reach.and_then(|far| far.checked_add(view.offset)?.checked_add(u64::from(!empty))?.checked_mul(bytes));
    if end.is_none_or(|end| end > storage.bytes) {
        return Err(format!("shape {:?} does not fit its storage of {} bytes", view.shape, storage.bytes));
    }
    Ok(Entry {
        file: 0,
        start: storage.start + view.offset * bytes,
        element: view.element,
        shape: view.shape,
        strides: Some(view.strides),
    })
}
