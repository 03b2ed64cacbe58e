// SPDX-License-Identifier: Apache-2.0
//! Every contract is well-formed and launches as its examples say.

use super::*;

fn first_dtypes(kernel: &Kernel) -> BTreeMap<String, DType> {
    let dtypes = kernel.contract.dtypes.iter();
    dtypes.map(|(name, all)| (name.clone(), all[0])).collect()
}

#[test]
fn every_contract_is_read_and_every_example_launches() {
    let kernels = all().unwrap();
    assert_eq!(kernels.len(), TEXTS.len());
    for kernel in kernels {
        let contract = &kernel.contract;
        assert!(!contract.examples.is_empty(), "{}", contract.name);
        for example in &contract.examples {
            let launch = kernel
                .launch(&example.sizes, &first_dtypes(kernel))
                .unwrap();
            assert_eq!(
                launch.grid.map(i64::from),
                example.grid,
                "{}",
                contract.name
            );
            let threadgroup = launch.threadgroup.map(i64::from);
            assert_eq!(threadgroup, example.threadgroup, "{}", contract.name);
            let sizes = kernel.resolve(&example.sizes).unwrap();
            for input in &contract.inputs {
                kernel.dtype(&input.dtype, &first_dtypes(kernel)).unwrap();
                for axis in &input.shape {
                    assert!(axis.value(&sizes).unwrap() >= 0, "{}", contract.name);
                }
            }
        }
    }
}

#[test]
fn the_folder_holds_what_the_registry_names() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/kernels");
    let mut files: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter_map(|name| name.strip_suffix(".toml").map(str::to_owned))
        .collect();
    files.sort();
    let mut names: Vec<&str> = TEXTS.iter().map(|(name, ..)| *name).collect();
    names.sort_unstable();
    assert_eq!(files, names);
}

#[test]
fn every_varying_dtype_has_a_tolerance_and_every_template_parameter_is_used() {
    for kernel in all().unwrap() {
        let contract = &kernel.contract;
        for dtype in contract
            .dtypes
            .values()
            .flatten()
            .filter(|dtype| dtype.is_float())
        {
            assert!(
                contract.tolerance.contains_key(dtype),
                "{} {dtype}",
                contract.name
            );
        }
        let text = format!("{}{}", kernel.header, kernel.body);
        for parameter in &contract.template {
            let used = text
                .split(|c: char| !c.is_alphanumeric() && c != '_')
                .any(|word| word == parameter.name);
            assert!(used, "{} has no {}", contract.name, parameter.name);
        }
    }
}

#[test]
fn what_a_kernel_does_not_take_is_refused() {
    let kernel = kernel("paged_attention_decode").unwrap();
    let dtypes = first_dtypes(kernel);
    let example = &kernel.contract.examples[0].sizes;

    let mut sizes = example.clone();
    sizes.insert("head_size".into(), 72);
    let refused = kernel.launch(&sizes, &dtypes).unwrap_err();
    assert!(refused.to_string().contains("lanes >= 16"), "{refused}");

    sizes.remove("head_size");
    let refused = kernel.launch(&sizes, &dtypes).unwrap_err();
    assert!(
        refused.to_string().contains("\"head_size\" has no value"),
        "{refused}"
    );

    let mut dtypes = dtypes;
    dtypes.insert("T".into(), DType::Int32);
    let refused = kernel.launch(example, &dtypes).unwrap_err();
    assert!(refused.to_string().contains("T = int32"), "{refused}");

    assert_eq!(
        super::kernel("none"),
        Err(KernelError::Unknown("none".into()))
    );
}
