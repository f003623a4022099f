//! Reads the pickles of PyTorch checkpoints without running anything: numbers, texts, containers, and tensors as places in
//! storages. Opcodes and globals form closed sets; all else is refused by name.
//!
//! Own code, because what `torch.save` writes is mostly persistent ids and calls: serde-pickle refuses the first and
//! resolves no calls, and the readers that machine-learning frameworks have come with the whole framework.

use std::collections::HashMap;
use std::io::Read;

use super::storage::{Kind, Storage, View};

/// Bytes that the pickles of one file may take. Each tensor of a state dict takes about two hundred.
const MAX_BYTES: u64 = 16 << 20;
/// Objects in them.
const MAX_NODES: usize = 1 << 20;
/// Objects that wait on the stack, and open marks.
const MAX_STACK: usize = 1 << 16;
/// Dimensions of a tensor.
const MAX_DIMENSIONS: usize = 8;
/// Characters of the name of a storage.
const MAX_KEY: usize = 256;
/// Characters of a file's own names that are repeated in messages.
const SHOWN: usize = 120;

/// What a pickle holds: objects that refer to each other by number, so that no cycle and no depth can hurt.
#[derive(Debug)]
pub(super) struct Object {
    nodes: Vec<Node>,
    root: Index,
}

type Index = u32;

/// One object.
#[derive(Clone, Debug)]
pub(super) enum Node {
    /// A number, `None`, or whatever else nobody asks for.
    Opaque,
    /// A truth value.
    Bool(bool),
    /// A whole number of at most 64 bits.
    Int(i64),
    /// A text.
    Text(String),
    /// A tuple.
    Tuple(Vec<Index>),
    /// A list.
    List(Vec<Index>),
    /// A dictionary, ordered or not.
    Dict(Vec<(Index, Index)>),
    /// A name that may be called.
    Global(Global),
    /// Numbers that lie elsewhere.
    Storage(Storage),
    /// A tensor over them.
    Tensor(View),
}

/// Every global that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Global {
    OrderedDict,
    Size,
    RebuildTensor,
    RebuildParameter,
    Storage(Kind),
}

impl Global {
    fn find(module: &str, name: &str) -> Option<Self> {
        match (module, name) {
            ("collections", "OrderedDict") => Some(Self::OrderedDict),
            ("torch", "Size") => Some(Self::Size),
            ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => Some(Self::RebuildTensor),
            ("torch._utils", "_rebuild_parameter") => Some(Self::RebuildParameter),
            // PyTorch before 0.4 kept classes of storages on GPUs apart.
            ("torch" | "torch.cuda", name) => Kind::of_storage_class(name).map(Self::Storage),
            _ => None,
        }
    }
}

impl Object {
    /// Reads one pickle, up to its STOP. `left` is what remains of [`budget`] and goes down by what was read.
    pub(super) fn read(input: &mut impl Read, left: &mut u64) -> Result<Self, String> {
        let (nodes, stack, marks, memo) = (Vec::new(), Vec::new(), Vec::new(), HashMap::new());
        let mut machine = Machine { input, left, nodes, stack, marks, memo, copied: 0 };
        while machine.step()? {}
        let root = machine.pop()?;
        Ok(Self { nodes: machine.nodes, root })
    }

    /// The object that was pickled.
    pub(super) fn root(&self) -> &Node {
        self.node(self.root)
    }

    /// The object of that number.
    pub(super) fn node(&self, index: Index) -> &Node {
        self.nodes.get(index as usize).unwrap_or(&Node::Opaque)
    }

    /// The entries of `node` under texts, if it is a dictionary; of two under one text the last.
    pub(super) fn entries(&self, node: &Node) -> Option<Vec<(&str, &Node)>> {
        let Node::Dict(items) = node else { return None };
        let text = |&(key, value): &(Index, Index)| match self.node(key) {
            Node::Text(key) => Some((key.as_str(), self.node(value))),
            _ => None,
        };
        Some(items.iter().filter_map(text).collect())
    }

    /// The tensors of `node` by name, if it is a dictionary of one or more tensors under texts and of nothing else.
    pub(super) fn state_dict(&self, node: &Node) -> Option<Vec<(&str, &View)>> {
        let Node::Dict(items) = node else { return None };
        let named = |&(key, value): &(Index, Index)| match (self.node(key), self.node(value)) {
            (Node::Text(key), Node::Tensor(view)) => Some((key.as_str(), view)),
            _ => None,
        };
        items.iter().map(named).collect::<Option<Vec<_>>>().filter(|tensors| !tensors.is_empty())
    }

    /// Every storage that the pickle names.
    pub(super) fn storages(&self) -> HashMap<&str, &Storage> {
        let mut storages = HashMap::new();
        for node in &self.nodes {
            if let Node::Storage(storage) = node {
                storages.insert(storage.key.as_str(), storage);
            }
        }
        storages
    }
}

/// How many bytes of pickles are read of one file.
pub(super) fn budget() -> u64 {
    MAX_BYTES
}

/// A name from a file, fit to be shown.
pub(super) fn shown(name: &str) -> String {
    name.escape_debug().take(SHOWN).collect()
}

/// The stack machine that a pickle is a program for.
struct Machine<'a, R> {
    input: &'a mut R,
    left: &'a mut u64,
    nodes: Vec<Node>,
    stack: Vec<Index>,
    marks: Vec<usize>,
    memo: HashMap<u32, Index>,
    /// Entries that calls have copied: a list of a million may be handed over a million times.
    copied: usize,
}

impl<R: Read> Machine<'_, R> {
    /// Does one opcode; false after the last.
    fn step(&mut self) -> Result<bool, String> {
        let [opcode] = self.bytes()?;
        match opcode {
            b'.' => return Ok(false),
            // PROTO, FRAME: how the rest is written, which its opcodes say again.
            0x80 => drop(self.bytes::<1>()?),
            0x95 => drop(self.bytes::<8>()?),
            b'(' => {
                bounded(self.marks.len(), MAX_STACK, "marks")?;
                self.marks.push(self.stack.len());
            }
            b'N' | b'G' => {
                if opcode == b'G' {
                    self.bytes::<8>()?;
                }
                self.push(Node::Opaque)?;
            }
            0x88 | 0x89 => self.push(Node::Bool(opcode == 0x88))?,
            b'K' | b'M' | b'J' | 0x8a => self.number(opcode)?,
            b'X' | 0x8c | b'U' | b'T' => self.text(opcode)?,
            b')' | b'\x85' | b'\x86' | b'\x87' => {
                let count = if opcode == b')' { 0 } else { usize::from(opcode - 0x84) };
                let items = self.pop_many(count)?;
                self.push(Node::Tuple(items))?;
            }
            b't' => {
                let items = self.pop_mark()?;
                self.push(Node::Tuple(items))?;
            }
            b']' => self.push(Node::List(Vec::new()))?,
            b'}' => self.push(Node::Dict(Vec::new()))?,
            b'a' | b'e' => {
                let items = if opcode == b'a' { self.pop_many(1)? } else { self.pop_mark()? };
                self.extend_list(items)?;
            }
            b's' | b'u' => {
                let items = if opcode == b's' { self.pop_many(2)? } else { self.pop_mark()? };
                self.extend_dict(&items)?;
            }
            b'q' | b'r' | 0x94 => self.remember(opcode)?,
            b'h' | b'j' => self.recall(opcode)?,
            b'c' | 0x93 => self.global(opcode)?,
            b'Q' => self.persistent()?,
            b'R' => self.call()?,
            b'b' => self.build()?,
            other => return Err(format!("the pickle uses opcode {other:#04x}, which is not among those read here")),
        }
        Ok(true)
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut bytes = [0; N];
        self.charge(N as u64)?;
        self.input.read_exact(&mut bytes).map_err(|error| format!("the pickle is cut short: {error}"))?;
        Ok(bytes)
    }

    fn charge(&mut self, bytes: u64) -> Result<(), String> {
        match self.left.checked_sub(bytes) {
            Some(left) => *self.left = left,
            None => return Err(format!("the pickles of a file must take at most {MAX_BYTES} bytes")),
        }
        Ok(())
    }

    fn push(&mut self, node: Node) -> Result<(), String> {
        bounded(self.nodes.len(), MAX_NODES, "objects")?;
        self.push_index(self.nodes.len() as Index)?;
        self.nodes.push(node);
        Ok(())
    }

    fn push_index(&mut self, index: Index) -> Result<(), String> {
        bounded(self.stack.len(), MAX_STACK, "objects on its stack")?;
        self.stack.push(index);
        Ok(())
    }

    /// Never below the last mark.
    fn pop(&mut self) -> Result<Index, String> {
        let floor = self.marks.last().copied().unwrap_or_default();
        if self.stack.len() > floor { self.stack.pop().ok_or_else(empty) } else { Err(empty()) }
    }

    fn pop_many(&mut self, count: usize) -> Result<Vec<Index>, String> {
        let floor = self.marks.last().copied().unwrap_or_default();
        let from = self.stack.len().checked_sub(count).filter(|&from| from >= floor).ok_or_else(empty)?;
        Ok(self.stack.split_off(from))
    }

    fn pop_mark(&mut self) -> Result<Vec<Index>, String> {
        let from = self.marks.pop().ok_or_else(empty)?;
        Ok(self.stack.split_off(from.min(self.stack.len())))
    }

    fn top(&mut self) -> Result<&mut Node, String> {
        let index = *self.stack.last().ok_or_else(empty)?;
        self.nodes.get_mut(index as usize).ok_or_else(empty)
    }

    /// BININT1, BININT2, BININT, LONG1. A whole number of more than 64 bits is nothing anybody asks for.
    fn number(&mut self, opcode: u8) -> Result<(), String> {
        let node = match opcode {
            b'K' => Node::Int(self.bytes::<1>()?.map(i64::from)[0]),
            b'M' => Node::Int(u16::from_le_bytes(self.bytes()?).into()),
            b'J' => Node::Int(i32::from_le_bytes(self.bytes()?).into()),
            _ => {
                let [length] = self.bytes()?;
                let digits = self.vector(length.into())?;
                // Two's complement, the lowest byte first.
                let sign = digits.last().is_some_and(|&high| high >= 0x80);
                let mut wide = [if sign { 0xff } else { 0 }; 8];
                if digits.len() > wide.len() {
                    Node::Opaque
                } else {
                    wide.iter_mut().zip(digits).for_each(|(place, digit)| *place = digit);
                    Node::Int(i64::from_le_bytes(wide))
                }
            }
        };
        self.push(node)
    }

    /// BINUNICODE, SHORT_BINUNICODE, and the byte strings that Python 2 wrote for texts, SHORT_BINSTRING and BINSTRING.
    fn text(&mut self, opcode: u8) -> Result<(), String> {
        let length = match opcode {
            b'X' | b'T' => u32::from_le_bytes(self.bytes()?),
            _ => self.bytes::<1>()?.map(u32::from)[0],
        };
        let text = self.vector(length.into())?;
        let text = String::from_utf8(text).map_err(|_| "the pickle has a text that is not UTF-8".to_owned());
        self.push(Node::Text(text?))
    }

    fn vector(&mut self, length: u64) -> Result<Vec<u8>, String> {
        self.charge(length)?;
        let mut bytes = Vec::new();
        self.input.take(length).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
        if (bytes.len() as u64) < length {
            return Err("the pickle is cut short".to_owned());
        }
        Ok(bytes)
    }

    fn line(&mut self) -> Result<String, String> {
        let mut bytes = Vec::new();
        loop {
            match self.bytes()? {
                [b'\n'] => break,
                [byte] => bytes.push(byte),
            }
        }
        String::from_utf8(bytes).map_err(|_| "the pickle has a name that is not UTF-8".to_owned())
    }

    fn extend_list(&mut self, mut more: Vec<Index>) -> Result<(), String> {
        match self.top()? {
            Node::List(items) => items.append(&mut more),
            _ => return Err("the pickle appends to what is no list".to_owned()),
        }
        Ok(())
    }

    fn extend_dict(&mut self, more: &[Index]) -> Result<(), String> {
        let (pairs, []) = more.as_chunks() else { return Err("the pickle has a key without a value".to_owned()) };
        match self.top()? {
            Node::Dict(items) => items.extend(pairs.iter().map(|&[key, value]| (key, value))),
            _ => return Err("the pickle sets an entry of what is no dictionary".to_owned()),
        }
        Ok(())
    }

    /// BINPUT, LONG_BINPUT, MEMOIZE.
    fn remember(&mut self, opcode: u8) -> Result<(), String> {
        let place = match opcode {
            b'q' => self.bytes::<1>()?.map(u32::from)[0],
            b'r' => u32::from_le_bytes(self.bytes()?),
            _ => self.memo.len() as u32,
        };
        bounded(self.memo.len(), MAX_NODES, "objects in its memo")?;
        let index = *self.stack.last().ok_or_else(empty)?;
        self.memo.insert(place, index);
        Ok(())
    }

    /// BINGET, LONG_BINGET.
    fn recall(&mut self, opcode: u8) -> Result<(), String> {
        let place = match opcode {
            b'h' => self.bytes::<1>()?.map(u32::from)[0],
            _ => u32::from_le_bytes(self.bytes()?),
        };
        let index =
            *self.memo.get(&place).ok_or_else(|| format!("the pickle recalls {place}, which it has not kept"))?;
        self.push_index(index)
    }

    /// GLOBAL, STACK_GLOBAL.
    fn global(&mut self, opcode: u8) -> Result<(), String> {
        let (module, name) = match opcode {
            b'c' => (self.line()?, self.line()?),
            _ => {
                let names = self.pop_many(2)?;
                let mut names = names.iter().map(|&index| match self.nodes.get(index as usize) {
                    Some(Node::Text(text)) => Ok(text.clone()),
                    _ => Err("the pickle names a global by what is no text".to_owned()),
                });
                (names.next().ok_or_else(empty)??, names.next().ok_or_else(empty)??)
            }
        };
        let global = Global::find(&module, &name).ok_or_else(|| {
            let (module, name) = (shown(&module), shown(&name));
            format!(
                "the pickle asks for {module}.{name}, which is not read here: only a state dict of tensors is; save \
                 model.state_dict() alone"
            )
        })?;
        self.push(Node::Global(global))
    }

    /// BINPERSID: ("storage", class, key, location, elements), with a view of the storage or None behind it in old files.
    fn persistent(&mut self) -> Result<(), String> {
        let id = self.pop()?;
        let parts = self.parts(id).ok_or("the pickle has a persistent id that is no tuple")?;
        let storage = match parts.as_slice() {
            [
                Node::Text(what),
                Node::Global(Global::Storage(kind)),
                Node::Text(key),
                _,
                Node::Int(elements),
                rest @ ..,
            ] if what == "storage" && matches!(rest, [] | [Node::Opaque]) && *elements >= 0 && key.len() <= MAX_KEY => {
                Storage { kind: *kind, key: key.clone(), elements: elements.unsigned_abs() }
            }
            _ => return Err("the pickle has a persistent id that is no whole storage of tensors".to_owned()),
        };
        self.push(Node::Storage(storage))
    }

    /// REDUCE: one of the few calls that make a tensor, an ordered dictionary or a size.
    fn call(&mut self) -> Result<(), String> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let Some(Node::Global(global)) = self.nodes.get(function as usize) else {
            return Err("the pickle calls what is no global".to_owned());
        };
        let (global, mut copied) = (*global, self.copied);
        let arguments = self.parts(arguments).ok_or("the pickle calls something without a tuple of arguments")?;
        let made = match (global, arguments.as_slice()) {
            (Global::OrderedDict, []) => Some(Node::Dict(Vec::new())),
            // Python 2 hands the pairs over, as a list of lists.
            (Global::OrderedDict, [Node::List(pairs)]) => {
                copied += pairs.len();
                bounded(copied, MAX_NODES, "entries handed to calls")?;
                self.pairs(pairs).map(Node::Dict)
            }
            (Global::Size, [Node::Tuple(sizes)]) if sizes.len() <= MAX_DIMENSIONS => Some(Node::Tuple(sizes.clone())),
            (Global::RebuildParameter, [Node::Tensor(view), ..]) => Some(Node::Tensor(view.clone())),
            (
                Global::RebuildTensor,
                [Node::Storage(storage), Node::Int(offset), Node::Tuple(shape), Node::Tuple(strides), ..],
            ) => self.view(storage, *offset, [shape, strides])?.map(Node::Tensor),
            _ => None,
        };
        self.copied = copied;
        self.push(made.ok_or_else(|| format!("the pickle calls {global:?} with arguments that it does not take"))?)
    }

    fn pairs(&self, pairs: &[Index]) -> Option<Vec<(Index, Index)>> {
        let pair = |&index: &Index| match self.nodes.get(index as usize)? {
            Node::List(pair) | Node::Tuple(pair) => match pair.as_slice() {
                &[key, value] => Some((key, value)),
                _ => None,
            },
            _ => None,
        };
        pairs.iter().map(pair).collect()
    }

    fn view(&self, storage: &Storage, offset: i64, sizes: [&[Index]; 2]) -> Result<Option<View>, String> {
        let numbers = |indices: &[Index]| -> Option<Vec<u64>> {
            let number = |&index: &Index| match self.nodes.get(index as usize)? {
                Node::Int(number) => u64::try_from(*number).ok(),
                _ => None,
            };
            indices.iter().map(number).collect()
        };
        for size in sizes {
            bounded(size.len(), MAX_DIMENSIONS + 1, "dimensions of a tensor")?;
        }
        let [shape, strides] = sizes.map(numbers);
        let (Some(shape), Some(strides), Ok(offset)) = (shape, strides, u64::try_from(offset)) else { return Ok(None) };
        Ok((shape.len() == strides.len()).then(|| View { storage: storage.clone(), offset, shape, strides }))
    }

    /// BUILD: attributes of a dictionary or a tensor, which say nothing of its content.
    fn build(&mut self) -> Result<(), String> {
        self.pop()?;
        match self.top()? {
            Node::Dict(_) | Node::Tensor(_) => Ok(()),
            _ => Err("the pickle sets attributes of what is neither a dictionary nor a tensor".to_owned()),
        }
    }

    /// The items of the tuple `index`.
    fn parts(&self, index: Index) -> Option<Vec<&Node>> {
        let Node::Tuple(items) = self.nodes.get(index as usize)? else { return None };
        // Enough for every call that is known; a longer tuple is no argument of any.
        (items.len() <= 8).then(|| items.iter().filter_map(|&item| self.nodes.get(item as usize)).collect())
    }
}

fn bounded(count: usize, most: usize, what: &str) -> Result<(), String> {
    if count < most { Ok(()) } else { Err(format!("the pickle must have at most {most} {what}")) }
}

fn empty() -> String {
    "the pickle takes from an empty stack".to_owned()
}
