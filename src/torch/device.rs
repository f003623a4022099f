//! The processor, and GPUs: the half of libtorch that uses CUDA is no part of the program, and loaded when it is asked for.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use tch::{Cuda, Kind, Tensor};

use super::first_line;
use crate::spec::Device;

/// Holds the kernels for CUDA, and registers them when it is loaded.
const LIBRARY: &str = "libtorch_cuda.so";

/// `device` as libtorch calls it.
#[must_use]
pub fn place(device: Device) -> tch::Device {
    match device {
        Device::Cpu => tch::Device::Cpu,
        Device::Cuda(index) => tch::Device::Cuda(index as usize),
    }
}

/// `wanted` if it can be used; without a wish, the first GPU if there is one that can be used, and the processor otherwise.
/// `libraries` is the directory that holds `libtorch_cuda.so`, next to the other libraries of the same libtorch; without it
/// the dynamic linker looks. Only the first call with a GPU in it, or without a wish, looks for them.
///
/// # Errors
/// There is no such GPU, or what it needs is missing: what, and how to come by it.
pub fn find(wanted: Option<Device>, libraries: Option<&Path>) -> Result<Device, String> {
    match wanted {
        Some(Device::Cpu) => Ok(Device::Cpu),
        None => match gpus(libraries) {
            Ok(_) => Ok(Device::Cuda(0)),
            Err(why) => {
                tracing::info!(why, "no GPU is used");
                Ok(Device::Cpu)
            }
        },
        Some(Device::Cuda(index)) => match gpus(libraries)? {
            count if index < count => Ok(Device::Cuda(index)),
            count => Err(format!("there are {count} GPUs, counted from cuda:0")),
        },
    }
}

/// How many GPUs there are, at least one.
fn gpus(libraries: Option<&Path>) -> Result<u32, String> {
    static FOUND: OnceLock<Result<u32, String>> = OnceLock::new();
    FOUND.get_or_init(|| load(libraries).and_then(|()| count())).clone()
}

/// Must come before anything else asks libtorch of CUDA: it remembers for good that there is none.
fn load(libraries: Option<&Path>) -> Result<(), String> {
    let path = libraries.map_or_else(|| LIBRARY.into(), |libraries| libraries.join(LIBRARY));
    let missing = |why: String| {
        format!(
            "the CUDA libraries of libtorch 2.11.0 cannot be loaded ({why}); `make setup DEVICE=cuda` lays them out, \
             engine.cuda_libraries says where they are"
        )
    };
    open(path.as_os_str()).map_err(|error| missing(error.to_string()))
}

#[expect(unsafe_code, reason = "loading a library runs its initialisers")]
fn open(path: &OsStr) -> Result<(), libloading::Error> {
    // SAFETY: the initialisers of libtorch's CUDA half register kernels with the libtorch that this program is linked to, and
    // expect it to be there and of the same build; one of another lacks symbols, which RTLD_NOW makes an error. Nothing is
    // called through the handle. Which file it is, is the operator's to say, like which program is run.
    let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) }?;
    // What it registered must stay.
    std::mem::forget(library);
    Ok(())
}

fn count() -> Result<u32, String> {
    let count = u32::try_from(Cuda::device_count()).unwrap_or(0);
    // The driver says what it lacks to whoever wants something of it.
    match Tensor::f_zeros([1], (Kind::Float, tch::Device::Cuda(0))) {
        Ok(_) if count > 0 => Ok(count),
        Ok(_) => Err("there is no GPU".to_owned()),
        Err(error) => Err(format!("no GPU can be used: {}", first_line(&error))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_its_libraries_a_gpu_is_refused_with_what_to_do_and_nobody_has_to_have_one() {
        let nowhere = tempfile::tempdir().unwrap();
        let found = |wanted| find(wanted, Some(nowhere.path()));
        assert_eq!(found(Some(Device::Cpu)), Ok(Device::Cpu));
        assert_eq!(found(None), Ok(Device::Cpu));
        let why = found(Some(Device::Cuda(0))).unwrap_err();
        for part in ["libtorch_cuda.so", nowhere.path().to_str().unwrap(), "make setup DEVICE=cuda", "cuda_libraries"] {
            assert!(why.contains(part), "{why}");
        }
    }
}
