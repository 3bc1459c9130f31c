// The element types every instruction set is compiled for.
namespace convbp::direct::CONVBP_ISA {
template Table<float, float> make_table();
template Table<double, double> make_table();
template Table<BFloat16, float> make_table();
template Table<Half, float> make_table();
}  // namespace convbp::direct::CONVBP_ISA
