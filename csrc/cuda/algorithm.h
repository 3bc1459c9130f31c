// The choice of the algorithm of a convolution on the GPU.
#pragma once

#include <string>

#include "core/conv_problem.h"

namespace convbp::cuda {

// The setting, "auto" or "reference", in every thread of the process.
std::string algorithm_setting();
void set_algorithm(const std::string& name);
bool reference_only();

enum class Algorithm { kReference, kDepthwise, kImplicitGemm };

// The algorithm, chosen by the problem and the setting alone: not by the tensors or the GPU.
Algorithm algorithm_for(const ConvProblem&);

}  // namespace convbp::cuda
