// SPDX-License-Identifier: Apache-2.0
//! Convolutions on MLX against the interpreter's.

use super::*;
use lowering::interpret::{Interpreter, Tensor};
use lowering::ir::{Builder, Convolution, Value};

fn plain(axes: usize) -> Convolution {
    Convolution {
        stride: vec![1; axes],
        low: vec![0; axes],
        high: vec![0; axes],
        dilation: vec![1; axes],
        expansion: vec![1; axes],
        groups: 1,
        flip: false,
    }
}

#[test]
fn convolutions_equal_the_interpreter() {
    let mlx = cpu();
    let mut random = Random(17);
    let strided = Convolution {
        stride: vec![2, 1],
        low: vec![1, 0],
        high: vec![2, 1],
        dilation: vec![1, 2],
        ..plain(2)
    };
    let grouped = Convolution {
        groups: 2,
        ..strided.clone()
    };
    let transposed = Convolution {
        expansion: vec![3],
        low: vec![2],
        high: vec![1],
        flip: true,
        ..plain(1)
    };
    let cases: [(Convolution, &[i32], &[i32]); 4] = [
        (plain(1), &[2, 7, 4], &[3, 3, 4]),
        (strided, &[2, 7, 6, 4], &[6, 3, 2, 4]),
        (grouped, &[1, 7, 6, 4], &[6, 3, 2, 2]),
        (transposed, &[2, 5, 4], &[3, 4, 4]),
    ];
    for (attributes, x_shape, weight_shape) in cases {
        let mut builder = Builder::default();
        let mut operand = |index: u32, shape: &[i32]| {
            let kind = fixed(DType::Float32, shape);
            let node = builder.node(Op::Input(index), &[], vec![kind]);
            let values = random.units(shape.iter().product::<i32>() as usize);
            (Value { node, output: 0 }, values)
        };
        let (x, x_values) = operand(0, x_shape);
        let (weight, weight_values) = operand(1, weight_shape);
        let op = Op::Convolution(attributes);
        let result = builder.add(op.clone(), &[x, weight]).unwrap();
        builder.graph.outputs = vec![result];
        let tensor = |values: &[f32], shape: &[i32]| {
            let shape = shape.iter().map(|size| *size as usize).collect();
            let values = values.iter().map(|value| f64::from(*value)).collect();
            Tensor::floats(DType::Float32, shape, values)
        };
        let inputs = [
            tensor(&x_values, x_shape),
            tensor(&weight_values, weight_shape),
        ];
        let expected = Interpreter::default()
            .graph(&builder.graph, &inputs, &[])
            .unwrap()
            .remove(0);
        let (x, weight) = (
            floats(&x_values, x_shape),
            floats(&weight_values, weight_shape),
        );
        let found = run(&mlx, &op, &[&x, &weight], DType::Float32);
        let shape: Vec<usize> = found.shape().iter().map(|size| *size as usize).collect();
        assert_eq!(shape, expected.shape, "{op:?}");
        assert!(
            difference(&values(&mlx, &found), &expected.to_f64()) < 1e-5,
            "{op:?}"
        );
    }
}
