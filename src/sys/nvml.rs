//! The one question to NVIDIA's management library that its wrapper has no function for.

use std::ffi::{c_uint, c_ulonglong, c_void};

use nvml_wrapper::{
    Device,
    error::{NvmlError, nvml_try},
};

/// `nvmlMemory_t` (nvml.h).
#[repr(C)]
#[derive(Default)]
struct Memory {
    total: c_ulonglong,
    free: c_ulonglong,
    used: c_ulonglong,
}

type GetMemoryInfo = unsafe extern "C" fn(*mut c_void, *mut Memory) -> c_uint;

/// Total and free bytes by `nvmlDeviceGetMemoryInfo`, for drivers before 510, which have no second version of it.
pub fn memory(device: &Device<'_>) -> Result<(u64, u64), NvmlError> {
    let mut memory = Memory::default();
    let library = &device.nvml().lib().__library;
    // SAFETY: nvml.h declares the symbol with this signature in every version since the first.
    let symbol = unsafe { library.get::<GetMemoryInfo>(b"nvmlDeviceGetMemoryInfo\0") };
    let get = symbol.map_err(|error| NvmlError::FailedToLoadSymbol(error.to_string()))?;
    // SAFETY: it is only handed to the library that it comes from, which `device` keeps loaded and initialised.
    let handle = unsafe { device.handle() };
    // SAFETY: the function is that library's; it writes one nvmlMemory_t to `memory`, which has its layout and is alive for the call.
    let code = unsafe { get(handle.cast(), std::ptr::from_mut(&mut memory)) };
    nvml_try(code)?;
    Ok((memory.total, memory.free))
}
