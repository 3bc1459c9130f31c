// The one place where an algorithm is chosen.
#pragma once

#include <string>

#include "../conv_problem.h"

namespace convbp {

enum class Algorithm { kPlain, kDirect };
enum class Operator { kForward, kInputGrad, kWeightGrad };

// What torch_convbp.backends.cpu.conv_algorithm says: "auto", "direct" or "plain".
void set_algorithm(const std::string& name);
std::string algorithm_setting();
// Does it ask for the plain loop nests? Pooling knows no other choice.
bool plain_only();

// The algorithm that computes this operator of this problem under the present setting.
Algorithm choose_algorithm(const ConvProblem& problem, Operator op);

}  // namespace convbp
