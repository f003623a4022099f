//! What is read of checkpoints, and what is refused by which words.

use pixeld::import::Tensor;
use zip::CompressionMethod;

use crate::checkpoint::*;

const SIX: [f32; 6] = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0];

fn six() -> Vec<u8> {
    floats(&SIX)
}

fn float_tensor(offset: i32, shape: &[i32], strides: &[i32]) -> Vec<u8> {
    tensor(storage("FloatStorage", "0", 6), offset, shape, strides)
}

fn one(bytes: &[u8]) -> Tensor {
    let mut tensors = read(bytes).unwrap();
    assert_eq!(tensors.len(), 1, "{tensors:?}");
    tensors.pop_first().unwrap().1
}

fn expect(tensor: &Tensor, shape: &[usize], values: &[f32]) {
    assert_eq!((tensor.shape.as_slice(), tensor.values.as_slice()), (shape, values));
}

#[test]
fn views_are_read_where_their_strides_lead() {
    type View<'a> = (i32, &'a [i32], &'a [i32], &'a [f32]);
    let views: [View<'_>; 7] = [
        (0, &[2, 3], &[3, 1], &SIX),
        (0, &[3, 2], &[1, 3], &[0.0, 3.0, 1.0, 4.0, 2.0, 5.0]),
        (1, &[2, 2], &[3, 1], &[1.0, 2.0, 4.0, 5.0]),
        (5, &[2, 2], &[0, 0], &[5.0; 4]),
        (4, &[], &[], &[4.0]),
        (6, &[3, 0], &[1, 1], &[]),
        (1, &[2, 1, 2], &[2, 9, 1], &[1.0, 2.0, 3.0, 4.0]),
    ];
    for (offset, shape, strides, values) in views {
        let object = dict(&[("w", float_tensor(offset, shape, strides))]);
        let shape: Vec<_> = shape.iter().map(|&n| n as usize).collect();
        expect(&one(&archive(&object, &[("0", &six())])), &shape, values);
        expect(&one(&stream(&object, &[("0", 6, &six())])), &shape, values);
    }
}

#[test]
fn every_kind_of_number_is_read_as_what_it_means() {
    let kinds: [(&str, Vec<u8>, f32); 10] = [
        ("BoolStorage", vec![1], 1.0),
        ("ByteStorage", vec![200], 200.0),
        ("CharStorage", vec![200], -56.0),
        ("ShortStorage", (-300i16).to_le_bytes().to_vec(), -300.0),
        ("IntStorage", (-70_000i32).to_le_bytes().to_vec(), -70_000.0),
        ("LongStorage", (1i64 << 40).to_le_bytes().to_vec(), 1_099_511_627_776.0),
        ("HalfStorage", vec![0x00, 0xc1], -2.5),
        ("BFloat16Storage", vec![0x20, 0xc0], -2.5),
        ("FloatStorage", (-2.5f32).to_le_bytes().to_vec(), -2.5),
        ("DoubleStorage", (-2.5f64).to_le_bytes().to_vec(), -2.5),
    ];
    for (class, bytes, value) in kinds {
        let object = dict(&[("w", tensor(storage(class, "k", 1), 0, &[1], &[1]))]);
        expect(&one(&archive(&object, &[("k", &bytes)])), &[1], &[value]);
    }
    assert!(
        refused(&archive(&dict(&[("w", tensor(storage("ComplexFloatStorage", "k", 1), 0, &[1], &[1]))]), &[]))
            .contains("torch.ComplexFloatStorage")
    );
}

/// An array of NumPy, as `numpy.save` writes it.
fn npy(descr: &str, fortran: &str, shape: &str, content: &[u8]) -> Vec<u8> {
    let header = format!("{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n");
    [b"\x93NUMPY\x01\x00", &(header.len() as u16).to_le_bytes()[..], header.as_bytes(), content].concat()
}

#[test]
fn numpy_archives_are_read_in_either_order() {
    let arrays = |arrays: &[(&str, Vec<u8>)]| {
        let files: Vec<_> = arrays.iter().map(|(name, array)| (*name, array.as_slice())).collect();
        zipped(&files, CompressionMethod::Deflated)
    };
    let rows = npy("'<f4'", "False", "(2, 3)", &six());
    let columns = npy("'<f4'", "True", "(2, 3)", &six());
    let scalar = npy("'<i8'", "False", "()", &7i64.to_le_bytes());
    let read_all = read(&arrays(&[("a/b.npy", rows.clone()), ("c.npy", columns), ("s.npy", scalar)])).unwrap();
    assert_eq!(read_all.keys().collect::<Vec<_>>(), ["archive/a/b", "archive/c", "archive/s"]);
    expect(&read_all["archive/a/b"], &[2, 3], &SIX);
    expect(&read_all["archive/c"], &[2, 3], &[0.0, 2.0, 4.0, 1.0, 3.0, 5.0]);
    expect(&read_all["archive/s"], &[], &[7.0]);
    for (wrong, why) in [
        (npy("'>f4'", "False", "(2, 3)", &six()), "must be of little-endian real numbers"),
        (npy("'<U3'", "False", "(2,)", &six()), "must be of little-endian real numbers"),
        (npy("[('a', '<f4')]", "False", "(6,)", &six()), "must be of little-endian real numbers"),
        (npy("'<f4'", "False", "(7,)", &six()), "cut short"),
        (npy("'<f4'", "False", "(5,)", &six()), "must have at most"),
        (npy("'<f4'", "False", "(1048576,)", &six()), "tensors: must take at most 65536 bytes"),
        (npy("'<f4'", "False", "(4294967296, 4294967296)", &six()), "more values than a file can hold"),
        (npy("'<f4'", "False", &"(".repeat(1000), &six()), "too long"),
        (rows.get(..40).unwrap().to_vec(), "too long for one, or cut"),
        (b"{}".to_vec(), "is no NumPy file"),
    ] {
        let told = refused(&arrays(&[("a.npy", wrong)]));
        assert!(told.contains(why), "{told}");
    }
    assert!(read_key(&arrays(&[("a.npy", rows)]), Some("a")).is_err());
}

#[test]
fn compressed_archives_are_read_too() {
    let pickle = pickle(&dict(&[("w", float_tensor(0, &[6], &[1]))]));
    let files: [(&str, &[u8]); 2] = [("data.pkl", &pickle), ("data/0", &six())];
    expect(&one(&zipped(&files, CompressionMethod::Deflated)), &[6], &SIX);
}

/// The state dict of PyTorch 0.3 under Python 2: byte strings, pairs in lists, storages of GPUs, no hooks, no gradients.
#[test]
fn what_python_2_wrote_is_read() {
    let short = |text: &str| [b"U", &[text.len() as u8][..], text.as_bytes()].concat();
    let long = |text: &str| [b"T", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat();
    let id = tuple(&[
        short("storage"),
        b"ctorch.cuda\nFloatStorage\nq\x02".to_vec(),
        short("140"),
        short("cuda:0"),
        b"K\x06".to_vec(),
        b"N".to_vec(),
    ]);
    let arguments =
        tuple(&[id, b"Q".to_vec(), b"K\x01".to_vec(), b"K\x02K\x02\x86".to_vec(), b"K\x02K\x01\x86".to_vec()]);
    let tensor = [b"ctorch._utils\n_rebuild_tensor\nq\x01", &arguments[..], b"Rq\x03"].concat();
    let pair = [b"]q\x04(", &long("conv.weight")[..], &tensor, b"e"].concat();
    let object = [b"ccollections\nOrderedDict\n](", &pair[..], b"e\x85R}b"].concat();
    let tensors = read(&stream(&object, &[("140", 6, &six())])).unwrap();
    expect(&tensors["conv.weight"], &[2, 2], &[1.0, 2.0, 3.0, 4.0]);
}

/// Protocol 4, parameters, shared storages, attributes of a dictionary, and a wrapper with all sorts of things in it.
#[test]
fn one_state_dict_is_found_in_what_is_around_it() {
    let w = [b"ctorch._utils\n_rebuild_parameter\n(", &float_tensor(0, &[6], &[1])[..], b"\x88}tR"].concat();
    let state = dict(&[("module.w", w), ("module.b", float_tensor(2, &[2], &[1]))]);
    let state = [&state[..], b"}", &text("_metadata"), b"}sb"].concat();
    let optimizer = dict(&[("state", dict(&[])), ("lr", b"G\x3f\x50\x62\x4d\xd2\xf1\xa9\xfc".to_vec())]);
    let wide = b"\x8a\x09\x00\x00\x00\x00\x00\x00\x00\x00\x40".to_vec();
    let wrapper = dict(&[
        ("epoch", b"K\x05".to_vec()),
        ("none", b"N".to_vec()),
        ("wide", wide),
        ("negative", b"\x8a\x01\xff".to_vec()),
        ("names", [b"](", &text("a")[..], &int(3), b"e"].concat()),
        ("optimizer", optimizer),
        ("net", state),
    ]);
    let framed = [b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00".as_slice(), &wrapper, b"\x94."].concat();
    let files: [(&str, &[u8]); 2] = [("data.pkl", &framed), ("data/0", &six())];
    for bytes in [
        zipped(&files, CompressionMethod::Stored),
        archive(&wrapper, &[("0", &six())]),
        stream(&wrapper, &[("0", 6, &six())]),
    ] {
        let tensors = read(&bytes).unwrap();
        assert_eq!(tensors.keys().collect::<Vec<_>>(), ["b", "w"]);
        expect(&tensors["w"], &[6], &SIX);
        expect(&tensors["b"], &[2], &[2.0, 3.0]);
        assert_eq!(read_key(&bytes, Some("net")).unwrap(), tensors);
    }
}

#[test]
fn which_of_two_state_dicts_is_meant_must_be_said() {
    let object = dict(&[
        ("model", dict(&[("w", float_tensor(0, &[6], &[1]))])),
        ("ema", dict(&[("w", float_tensor(5, &[1], &[1]))])),
    ]);
    let bytes = archive(&object, &[("0", &six())]);
    assert!(refused(&bytes).ends_with("name the one that is meant (--key): \"ema\", \"model\""));
    expect(&read_key(&bytes, Some("ema")).unwrap()["w"], &[1], &[5.0]);
    let other = read_key(&bytes, Some("other")).unwrap_err().to_string();
    assert!(other.ends_with("has no state dict under \"other\"; it has: \"ema\", \"model\""), "{other}");
}

#[test]
fn a_storage_that_nobody_asks_for_is_passed_by() {
    let object = dict(&[
        ("optimizer", dict(&[("momentum", dict(&[("m", tensor(storage("DoubleStorage", "a", 2), 0, &[2], &[1]))]))])),
        ("net", dict(&[("w", float_tensor(0, &[6], &[1]))])),
    ]);
    expect(&one(&stream(&object, &[("a", 2, &[0; 16]), ("0", 6, &six())])), &[6], &SIX);
    expect(&one(&archive(&object, &[("0", &six())])), &[6], &SIX);
}

#[test]
fn nothing_is_called_but_what_makes_a_tensor() {
    let calls = [
        ("posix", "system", "cposix\nsystem\n"),
        ("builtins", "eval", "cbuiltins\neval\n"),
        ("torch.nn.modules.linear", "Linear", "ctorch.nn.modules.linear\nLinear\n"),
        ("numpy.core.multiarray", "scalar", "cnumpy.core.multiarray\nscalar\n"),
        ("collections", "OrderedDict.update", "ccollections\nOrderedDict.update\n"),
    ];
    for (module, name, global) in calls {
        let call = [global.as_bytes(), &text("true"), b"\x85R"].concat();
        let told = refused(&archive(&dict(&[("w", float_tensor(0, &[6], &[1])), ("x", call)]), &[("0", &six())]));
        assert!(told.contains(&format!("asks for {module}.{name}, which is not read")), "{told}");
        let stacked = [&text(module)[..], &text(name), b"\x93."].concat();
        assert!(refused(&zipped(&[("data.pkl", &stacked)], CompressionMethod::Stored)).contains("asks for"));
    }
    // Protocol 0, instances, extensions, buffers, and opcodes that are none.
    for opcode in [b'i', b'o', b'I', b'S', 0x81, 0x82, 0x92, 0x97, 0xff, 0x00] {
        let told = refused(&archive(&[b"}", &[opcode][..]].concat(), &[]));
        assert!(told.contains(&format!("opcode {opcode:#04x}")), "{told}");
    }
}

#[test]
fn calls_take_their_own_arguments_only() {
    let id = |parts: &[Vec<u8>]| [tuple(parts), b"Q".to_vec()].concat();
    let class = b"ctorch\nFloatStorage\n".to_vec();
    let wrong = [
        [b"ctorch._utils\n_rebuild_tensor_v2\n".as_slice(), &int(1), b"\x85R"].concat(),
        [b"ctorch\nSize\n".as_slice(), &int(1), b"\x85R"].concat(),
        [b"ccollections\nOrderedDict\n".as_slice(), &numbers(&[1]), b"\x85R"].concat(),
        [b"ctorch\nFloatStorage\n)R".as_slice()].concat(),
        [&int(1)[..], b")R"].concat(),
        float_tensor(-1, &[1], &[1]),
        float_tensor(0, &[-1], &[1]),
        float_tensor(0, &[1], &[-1]),
        float_tensor(0, &[1, 1], &[1]),
        float_tensor(0, &[1; 10], &[1; 10]),
        tensor(storage("FloatStorage", "0", -6), 0, &[1], &[1]),
        tensor(storage("FloatStorage", &"k".repeat(300), 6), 0, &[1], &[1]),
        id(&[text("module"), class.clone(), text("0"), text("cpu"), int(6)]),
        id(&[text("storage"), text("x"), text("0"), text("cpu"), int(6)]),
        id(&[text("storage"), class.clone(), text("0"), text("cpu"), int(6), numbers(&[0, 0, 1])]),
        [&int(1)[..], b"Q"].concat(),
        [&int(1)[..], b"}b"].concat(),
        [&int(1)[..], &int(1), b"a"].concat(),
        [&int(1)[..], &int(1), &int(1), b"s"].concat(),
        [b"}(", &int(1)[..], b"u"].concat(),
        b"h\x00".to_vec(),
        b"R".to_vec(),
        b"t".to_vec(),
        [&int(1)[..], b"(\x85"].concat(),
        [b"X\xff\xff\xff\x7f".as_slice(), b"abc"].concat(),
        b"X\x01\x00\x00\x00\xff".to_vec(),
    ];
    for object in wrong {
        let wrapped = dict(&[("net", dict(&[("w", float_tensor(0, &[6], &[1]))])), ("x", object.clone())]);
        assert!(read(&archive(&wrapped, &[("0", &six())])).is_err(), "{}", object.escape_ascii());
    }
}

#[test]
fn tensors_stay_within_their_storages() {
    let beyond: [(i32, &[i32], &[i32]); 6] = [
        (0, &[i32::MAX, i32::MAX, i32::MAX, 0], &[0; 4]),
        (0, &[7], &[1]),
        (1, &[6], &[1]),
        (0, &[2, 2], &[5, 1]),
        (i32::MAX, &[1], &[1]),
        (0, &[i32::MAX; 8], &[0; 8]),
    ];
    for (offset, shape, strides) in beyond {
        let object = dict(&[("w", float_tensor(offset, shape, strides))]);
        let told = refused(&archive(&object, &[("0", &six())]));
        assert!(told.contains("leaves its storage of 6 elements"), "{told}");
    }
    // One storage, said to be of two kinds or lengths.
    let twice = |other| dict(&[("v", float_tensor(0, &[6], &[1])), ("w", tensor(other, 0, &[1], &[1]))]);
    for other in [storage("IntStorage", "0", 6), storage("FloatStorage", "0", 5)] {
        assert!(refused(&archive(&twice(other), &[("0", &six())])).starts_with("tensors.w: sees storage"));
    }
}

#[test]
fn nothing_is_larger_than_the_limit() {
    let object = |shape: &[i32], strides: &[i32]| dict(&[("w", float_tensor(0, shape, strides))]);
    // One element seen a billion times.
    let told = refused(&archive(&object(&[1 << 15, 1 << 15], &[0, 0]), &[("0", &six())]));
    assert_eq!(told, "tensors: must take at most 65536 bytes as f32, got 4294967296");
    let wide = dict(&[("w", tensor(storage("FloatStorage", "0", 1 << 20), 0, &[1], &[1]))]);
    assert!(refused(&archive(&wide, &[("0", &six())])).contains("the limit is 65536 bytes"));
    // A storage that unpacks to more, or less, than its pickle says.
    let pickle = pickle(&object(&[6], &[1]));
    for length in [0, 23, 25, 1 << 24] {
        let files: [(&str, &[u8]); 2] = [("data.pkl", &pickle), ("data/0", &vec![0; length])];
        let told = refused(&zipped(&files, CompressionMethod::Deflated));
        assert!(told.contains("archive/data/0 must have"), "{told}");
    }
    for (held, content) in [(5, 24), (6, 23), (-1, 24), (i64::MAX, 24), (6, 0)] {
        let told = refused(&stream(&object(&[6], &[1]), &[("0", held, &vec![0; content])]));
        assert!(told.contains("storage") || told.contains("cut short"), "{told}");
    }
    assert!(refused(&stream(&object(&[6], &[1]), &[])).contains("\"0\" is not in the file"));
    assert!(refused(&archive(&object(&[6], &[1]), &[])).contains("archive/data/0"));
    assert!(refused(&stream(&object(&[6], &[1]), &[("9", 6, &six())])).contains("which no tensor is in"));
}

#[test]
fn a_pickle_has_an_end_to_everything() {
    let endless: [(&[u8], usize, &str); 6] = [
        (b"N", 1 << 17, "objects on its stack"),
        (b"(", 1 << 17, "marks"),
        (b"](Ne", 1 << 17, "objects on its stack"),
        (b"\x85", 1 << 21, "objects"),
        // A list of a thousand pairs, copied again and again by what makes dictionaries of lists.
        (b"h\x00h\x01\x85R", 1 << 14, "entries handed to calls"),
        (b"N\x94", 1 << 17, "objects"),
    ];
    for (piece, times, what) in endless {
        let pairs = [b"](".as_slice(), &b"NN\x86".repeat(1000), b"e"].concat();
        let before = [b"ccollections\nOrderedDict\nq\x00", &pairs[..], b"q\x01"].concat();
        let told = refused(&archive(&[&before[..], &piece.repeat(times)].concat(), &[]));
        assert!(told.contains(what), "{}: {told}", piece.escape_ascii());
    }
    let long = [b"X", &(32u32 << 20).to_le_bytes()[..]].concat();
    assert!(refused(&archive(&long, &[])).contains("at most 16777216 bytes"));
}

#[test]
fn other_files_are_told_from_checkpoints() {
    let good = pickle(&dict(&[("w", float_tensor(0, &[6], &[1]))]));
    let data: (&str, &[u8]) = ("data/0", &six());
    let with = |name, content| zipped(&[("data.pkl", &good), data, (name, content)], CompressionMethod::Stored);
    assert!(read(&with("version", b"3")).is_ok());
    assert!(refused(&with("constants.pkl", b"")).contains("is a TorchScript module"));
    assert!(refused(&with("byteorder", b"big")).contains("must be little-endian"));
    assert!(refused(&with("more/data.pkl", &good)).contains("must have one data.pkl"));
    assert!(refused(&zipped(&[data], CompressionMethod::Stored)).contains("must have one data.pkl"));
    assert!(refused(b"PK\x03\x04").contains("zip"));
    for other in [b"".as_slice(), b"{}", b"\x89PNG\r\n\x1a\n", b"\x80\x02}q\x00."] {
        assert!(refused(other).contains("is neither"), "{}", other.escape_ascii());
    }
    for empty in [dict(&[]), int(3), dict(&[("a", int(3))]), float_tensor(0, &[6], &[1])] {
        assert!(refused(&archive(&empty, &[("0", &six())])).contains("dictionary of tensors"));
    }
    let whole = stream(&dict(&[("w", float_tensor(0, &[6], &[1]))]), &[("0", 6, &six())]);
    let swapped = |from: &[u8], to: &[u8]| {
        let at = whole.windows(from.len()).position(|window| window == from).unwrap();
        [&whole[..at], to, &whole[at + from.len()..]].concat()
    };
    assert!(refused(&swapped(&int(1001), &int(1002))).contains("version 1001"));
    assert!(refused(&swapped(b"\x88", b"\x89")).contains("little-endian"));
}
