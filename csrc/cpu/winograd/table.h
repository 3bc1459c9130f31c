// The functions of an instruction set for the Winograd algorithm: one table per element type and
// form. <instruction set>.cpp makes the tables, winograd.cpp chooses.
#pragma once

#include <cstdint>

#include "core/conv_problem.h"
#include "cpu/capability.h"
#include "cpu/epilogue.h"
#include "cpu/winograd/plan.h"

namespace convbp::winograd {

template <typename T>
struct KernelTable {
  int vector_bytes;
  int vectors;  // vectors of a row of the register tile
  int rows;     // rows of the register tile
  void (*filters)(const Winograd&, const T* weight, const WeightStrides&, float* transformed,
                  int64_t begin, int64_t end);
  // `filters` as the function above left them; null: the tasks transform the weight themselves.
  void (*gather_conv)(const Winograd&, View<const T> source, const T* weight, const WeightStrides&,
                      const float* filters, const Epilogue<T>&, View<T> result, int64_t begin,
                      int64_t end);
  // Null for result phases. `sums` are those of all tasks, or null where there is one chunk: the
  // tasks then write the gradients themselves.
  void (*weight_grad)(const Winograd&, View<const T> input, View<const T> delta, float* sums,
                      View<T> weight_grad, T* bias_grad, int64_t begin, int64_t end);
  void (*weight_grad_total)(const Winograd&, const float* sums, View<T> weight_grad, T* bias_grad,
                            int64_t begin, int64_t end);
};

// Kernels for so many result channels a group.
CONVBP_IN_EACH_ISA(template <typename T> KernelTable<T> kernels(const Form& form, int64_t lanes);)

}  // namespace convbp::winograd
