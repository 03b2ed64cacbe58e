// SPDX-License-Identifier: Apache-2.0
//! What MLX reports instead of throwing through C.

use std::cell::RefCell;
use std::ffi::{CStr, c_char, c_void};
use std::sync::Once;
use thiserror::Error;

/// An exception of MLX's C++ code.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("MLX: {0}")]
pub struct MlxError(pub String);

/// Result of an MLX operation.
pub type MlxResult<T> = Result<T, MlxError>;

thread_local! {
    static LAST: RefCell<Option<String>> = const { RefCell::new(None) };
}

extern "C" fn remember(message: *const c_char, _data: *mut c_void) {
    if message.is_null() {
        return;
    }
    // SAFETY: MLX passes a NUL-terminated string that lives during this call.
    let text = unsafe { CStr::from_ptr(message) }
        .to_string_lossy()
        .into_owned();
    LAST.with_borrow_mut(|last| *last = Some(text));
}

/// Makes MLX report errors here instead of ending the process. To be called before any operation.
pub(super) fn install_handler() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // mlx-rs installs a handler of its own at its first fallible call: let it do so now, or it
        // would replace this one later.
        let _ = mlx_rs::memory::active_memory();
        // SAFETY: the handler is a static function and takes no data.
        unsafe { mlx_sys::mlx_set_error_handler(Some(remember), std::ptr::null_mut(), None) };
    });
}

/// The error of the operation that just failed in this thread.
pub(super) fn last_error() -> MlxError {
    let text = LAST.with_borrow_mut(Option::take);
    // MLX's C layer appends " at FILE:LINE" of itself, which tells a user nothing.
    let text = text.map(|text| match text.rfind(" at /") {
        Some(end) => text[..end].to_owned(),
        None => text,
    });
    MlxError(text.unwrap_or_else(|| "an operation failed without a message".to_owned()))
}
