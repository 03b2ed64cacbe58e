// SPDX-License-Identifier: Apache-2.0
//! The Metal kernels of `lowering/kernels`: bodies for `mlx.fast.metal_kernel`, each with a
//! [`Contract`] that says what it takes and how it is launched. Nothing here compiles or runs them.

mod contract;
mod expression;

pub use contract::{Contract, Example, Input, Numerics, Output, Strides, Template, Tolerance};
pub use expression::{Expression, Sizes, Undefined};

use crate::ir::DType;
use std::collections::BTreeMap;
use std::sync::OnceLock;

/// A kernel's text and contract.
#[derive(Clone, Debug, PartialEq)]
pub struct Kernel {
    pub contract: Contract,
    /// The contract as it was written.
    pub text: &'static str,
    /// The body of its function.
    pub body: &'static str,
    /// Functions that the body calls.
    pub header: String,
}

/// A value of a template parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TemplateValue {
    DType(DType),
    Int(i32),
    Bool(bool),
}

/// An output's shape and dtype.
pub type OutputType = (Vec<i32>, DType);

/// One way to launch a kernel.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Launch {
    /// Threads.
    pub grid: [i32; 3],
    pub threadgroup: [i32; 3],
    /// In the contract's order.
    pub outputs: Vec<OutputType>,
    pub template: Vec<(String, TemplateValue)>,
}

/// Why there is no such launch.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KernelError {
    #[error("there is no kernel {0:?}")]
    Unknown(String),
    #[error("the contract of kernel {kernel:?}: {reason}")]
    Contract { kernel: String, reason: String },
    #[error("kernel {kernel:?} needs {requirement}, which {sizes} does not give")]
    Requirement {
        kernel: String,
        requirement: String,
        sizes: String,
    },
    #[error("kernel {kernel:?} cannot have {name} = {dtype}")]
    DType {
        kernel: String,
        name: String,
        dtype: String,
    },
    #[error("kernel {kernel:?}, {place}: {reason}")]
    Undefined {
        kernel: String,
        place: String,
        reason: Undefined,
    },
    #[error("kernel {kernel:?}, {place}: {value} is out of range")]
    Range {
        kernel: String,
        place: String,
        value: i64,
    },
}

macro_rules! texts {
    ($($name:literal),* $(,)?) => {
        [$((
            $name,
            include_str!(concat!("../../kernels/", $name, ".metal")),
            include_str!(concat!("../../kernels/", $name, ".toml")),
        )),*]
    };
}

const TEXTS: &[(&str, &str, &str)] = &texts![
    "gated_activation",
    "layer_norm",
    "paged_attention_decode",
    "paged_attention_prefill",
    "paged_attention_reduce",
    "qk_norm_rope",
    "rms_norm",
    "sample",
    "soft_cap",
];

/// Functions that bodies share, by the file's name.
const HEADERS: &[(&str, &str)] = &[
    (
        "activations.metal",
        include_str!("../../kernels/activations.metal"),
    ),
    ("ordered.metal", include_str!("../../kernels/ordered.metal")),
    ("philox.metal", include_str!("../../kernels/philox.metal")),
    ("rows.metal", include_str!("../../kernels/rows.metal")),
];

fn read(name: &'static str, body: &'static str, text: &'static str) -> Result<Kernel, KernelError> {
    let wrong = |reason: String| KernelError::Contract {
        kernel: name.to_owned(),
        reason,
    };
    let contract: Contract = toml::from_str(text).map_err(|error| wrong(error.to_string()))?;
    if contract.name != name {
        return Err(wrong(format!("it is named {:?}", contract.name)));
    }
    let header = contract.headers.iter().map(|header| {
        HEADERS
            .iter()
            .find(|(file, _)| file == header)
            .map(|(_, text)| *text)
            .ok_or_else(|| wrong(format!("there is no {header:?}")))
    });
    let header = header.collect::<Result<Vec<_>, _>>()?.join("\n");
    Ok(Kernel {
        contract,
        text,
        body,
        header,
    })
}

/// All kernels, by name.
///
/// # Errors
/// A contract that is not well-formed; a test keeps this from happening.
pub fn all() -> Result<&'static [Kernel], KernelError> {
    static KERNELS: OnceLock<Result<Vec<Kernel>, KernelError>> = OnceLock::new();
    let kernels = KERNELS.get_or_init(|| {
        TEXTS
            .iter()
            .map(|(name, body, contract)| read(name, body, contract))
            .collect()
    });
    kernels.as_deref().map_err(Clone::clone)
}

/// The kernel of that name.
///
/// # Errors
/// There is none.
pub fn kernel(name: &str) -> Result<&'static Kernel, KernelError> {
    all()?
        .iter()
        .find(|kernel| kernel.contract.name == name)
        .ok_or_else(|| KernelError::Unknown(name.to_owned()))
}

impl Kernel {
    /// The sizes with all that derives of them.
    ///
    /// # Errors
    /// A size that is missing, or a requirement that the sizes do not keep.
    pub fn resolve(&self, sizes: &Sizes) -> Result<Sizes, KernelError> {
        let mut sizes = sizes.clone();
        for (name, expression) in &self.contract.derived {
            let value = self.value(name, expression, &sizes)?;
            sizes.insert(name.clone(), value);
        }
        for requirement in &self.contract.requires {
            if self.value("a requirement", requirement, &sizes)? == 0 {
                return Err(KernelError::Requirement {
                    kernel: self.contract.name.clone(),
                    requirement: requirement.to_string(),
                    sizes: format!("{sizes:?}"),
                });
            }
        }
        Ok(sizes)
    }

    /// How the kernel is launched for sizes and parameters, and dtypes, by name.
    ///
    /// # Errors
    /// As [`Kernel::resolve`], or a dtype that the kernel does not take.
    pub fn launch(
        &self,
        sizes: &Sizes,
        dtypes: &BTreeMap<String, DType>,
    ) -> Result<Launch, KernelError> {
        let sizes = self.resolve(sizes)?;
        for name in self.contract.dtypes.keys() {
            self.dtype(name, dtypes)?;
        }
        let axes = |place: &str, axes: &[Expression; 3]| -> Result<[i32; 3], KernelError> {
            let mut numbers = [0; 3];
            for (number, axis) in numbers.iter_mut().zip(axes) {
                *number = self.number(place, axis, &sizes, 1)?;
            }
            Ok(numbers)
        };
        let grid = axes("grid", &self.contract.grid)?;
        let threadgroup = axes("threadgroup", &self.contract.threadgroup)?;
        let mut outputs = Vec::with_capacity(self.contract.outputs.len());
        for output in &self.contract.outputs {
            let shape = output
                .shape
                .iter()
                .map(|axis| self.number(&output.name, axis, &sizes, 0))
                .collect::<Result<_, _>>()?;
            outputs.push((shape, self.dtype(&output.dtype, dtypes)?));
        }
        let mut template = Vec::with_capacity(self.contract.template.len());
        for parameter in &self.contract.template {
            let name = &parameter.name;
            let value = match (&parameter.dtype, &parameter.value, &parameter.flag) {
                (Some(dtype), None, None) => TemplateValue::DType(self.dtype(dtype, dtypes)?),
                (None, Some(value), None) => {
                    TemplateValue::Int(self.number(name, value, &sizes, i32::MIN)?)
                }
                (None, None, Some(flag)) => {
                    TemplateValue::Bool(self.value(name, flag, &sizes)? != 0)
                }
                _ => {
                    return Err(KernelError::Contract {
                        kernel: self.contract.name.clone(),
                        reason: format!("{name} is not one of dtype, value and flag"),
                    });
                }
            };
            template.push((name.clone(), value));
        }
        Ok(Launch {
            grid,
            threadgroup,
            outputs,
            template,
        })
    }

    /// The dtype that a contract's name stands for.
    ///
    /// # Errors
    /// It is not given, or not among those that the kernel takes.
    pub fn dtype(
        &self,
        name: &str,
        dtypes: &BTreeMap<String, DType>,
    ) -> Result<DType, KernelError> {
        let wrong = |dtype: String| KernelError::DType {
            kernel: self.contract.name.clone(),
            name: name.to_owned(),
            dtype,
        };
        let Some(allowed) = self.contract.dtypes.get(name) else {
            return DType::from_name(name).ok_or_else(|| wrong("no dtype".to_owned()));
        };
        let dtype = *dtypes
            .get(name)
            .ok_or_else(|| wrong("nothing".to_owned()))?;
        match allowed.contains(&dtype) {
            true => Ok(dtype),
            false => Err(wrong(dtype.to_string())),
        }
    }

    fn value(&self, place: &str, of: &Expression, sizes: &Sizes) -> Result<i64, KernelError> {
        of.value(sizes).map_err(|reason| KernelError::Undefined {
            kernel: self.contract.name.clone(),
            place: place.to_owned(),
            reason,
        })
    }

    fn number(
        &self,
        place: &str,
        of: &Expression,
        sizes: &Sizes,
        least: i32,
    ) -> Result<i32, KernelError> {
        let value = self.value(place, of, sizes)?;
        i32::try_from(value)
            .ok()
            .filter(|number| *number >= least)
            .ok_or_else(|| KernelError::Range {
                kernel: self.contract.name.clone(),
                place: place.to_owned(),
                value,
            })
    }
}

#[cfg(test)]
mod tests;
