// The table that the program prints: a line for each kernel that an operator starts, with columns
//
//   layer; type; layout; operator; kernel;
//   global: the least sectors, as a share of those that move;
//   shared: the turns, as a multiple of the least;
//   of each tensor, in multiples of its size: bytes that lanes ask for / sectors that a block moves
//   for the first time
//
// and below it an indented one for each instruction that wastes much, the worst first.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "accesses.h"

namespace convbp::traffic {

struct Line {
  std::string title;  // layer, type, layout, operator
  std::string kernel;
  std::map<std::string, int64_t> size;  // of each tensor, in bytes
  std::vector<Requests> requests;
};

void print(const std::vector<Line>& lines);

}  // namespace convbp::traffic
