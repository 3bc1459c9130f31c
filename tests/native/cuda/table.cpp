#include "table.h"

#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <set>
#include <utility>

namespace convbp::traffic {
namespace {

// Worse than this is told of an instruction.
constexpr double kGoodGlobal = 0.8, kGoodShared = 1.1;

// The kernel's source line of a return address, and the lines that it was inlined into, from
// addr2line; other files are not of interest.
std::map<uintptr_t, std::string> source_lines(const std::set<uintptr_t>& addresses) {
  char program[4096] = {};
  if (readlink("/proc/self/exe", program, sizeof program - 1) < 0) return {};
  std::string command = std::string("addr2line -a -i -s -e '") + program + "'";
  for (const uintptr_t address : addresses) {
    char text[32];
    std::snprintf(text, sizeof text, " 0x%zx", address - 1);  // in the call, not behind it
    command += text;
  }
  std::map<uintptr_t, std::string> lines;
  FILE* const pipe = popen(command.c_str(), "r");
  if (!pipe) return {};
  char text[4096];
  uintptr_t address = 0;
  while (std::fgets(text, sizeof text, pipe)) {
    const std::string line(text, std::string(text).find_first_of(" \n"));
    if (line.rfind("0x", 0) == 0)
      address = std::strtoull(text, nullptr, 16) + 1;
    else if (line.find(".cuh:") != std::string::npos)
      lines[address] += (lines[address].empty() ? "" : " < ") + line;
  }
  pclose(pipe);
  return lines;
}

double ratio(int64_t a, int64_t b) {
  return b ? static_cast<double>(a) / static_cast<double>(b) : 1;
}

bool wasteful(const Requests& r) {
  return r.shared ? ratio(r.cost, r.least) > kGoodShared : ratio(r.least, r.cost) < kGoodGlobal;
}

}  // namespace

void print(const std::vector<Line>& lines) {
  std::set<uintptr_t> addresses;
  for (const Line& line : lines)
    for (const Requests& r : line.requests)
      if (wasteful(r)) addresses.insert(r.callers.begin() + 1, r.callers.end());
  const auto sources = source_lines(addresses);
  for (const Line& line : lines) {
    int64_t least = 0, moved = 0, turns = 0, least_turns = 0;
    std::map<std::string, std::pair<int64_t, int64_t>> tensors;
    for (const Requests& r : line.requests) {
      if (r.shared) {
        turns += r.cost, least_turns += r.least;
        continue;
      }
      least += r.least, moved += r.cost;
      auto& [asked, fresh] = tensors[(r.write ? "to " : "from ") + r.memory];
      asked += r.asked, fresh += 32 * r.fresh;
    }
    std::printf("%s; %s; %.2f; %.2f;", line.title.c_str(), line.kernel.c_str(), ratio(least, moved),
                ratio(turns, least_turns));
    for (const auto& [name, bytes] : tensors) {
      const int64_t size = line.size.at(name.substr(name.find(' ') + 1));
      std::printf(" %s %.2f/%.2f", name.c_str(), ratio(bytes.first, size),
                  ratio(bytes.second, size));
    }
    std::printf("\n");
    for (const Requests& r : line.requests) {
      if (!wasteful(r)) continue;
      std::string where;
      for (auto at = r.callers.rbegin(); at + 1 != r.callers.rend(); ++at)
        if (const auto found = sources.find(*at); found != sources.end())
          where += (where.empty() ? "" : " < ") + found->second;
      std::printf(
          "    %s %s, %d bytes a lane: %lld requests of %.1f lanes, %.2f %s where %.2f do, %s\n",
          r.write ? "to" : "from", r.memory.c_str(), r.bytes, static_cast<long long>(r.count),
          ratio(r.asked, r.count * r.bytes), ratio(r.cost, r.count), r.shared ? "turns" : "sectors",
          ratio(r.least, r.count), where.c_str());
    }
  }
}

}  // namespace convbp::traffic
