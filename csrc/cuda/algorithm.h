// How convolutions are computed on the GPU.
#pragma once

#include <string>

namespace convbp::cuda {

// "auto" or "plain", in every thread of the process.
std::string algorithm_setting();
void set_algorithm(const std::string& name);
bool plain_only();

}  // namespace convbp::cuda
