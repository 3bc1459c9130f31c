// Instantiates a template's function for every element type.
#pragma once

#include "core/types.h"

#define CONVBP_FOR_EACH_ELEMENT(INSTANTIATE) \
  INSTANTIATE(float)                         \
  INSTANTIATE(double)                        \
  INSTANTIATE(BFloat16)                      \
  INSTANTIATE(Half)
