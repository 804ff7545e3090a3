// A device that is not the CPU, for machines without a GPU: it computes with the CPU's kernels, but has a memory of its
// own, refuses tensors on two devices where CUDA does, and casts under autocast by CUDA's lists.

#include <ATen/EmptyTensor.h>
#include <ATen/autocast_mode.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/DispatchStub.h>
#include <ATen/native/transformers/attention.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/extension.h>

namespace {

constexpr auto KIND = c10::DeviceType::PrivateUse1;
const c10::Device HERE(KIND, 0);

struct Guard final : c10::impl::DeviceGuardImplInterface {
  static c10::Stream only() { return c10::Stream(c10::Stream::DEFAULT, HERE); }
  c10::DeviceType type() const override { return KIND; }
  c10::Device exchangeDevice(c10::Device) const override { return HERE; }
  c10::Device getDevice() const override { return HERE; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override { return only(); }
  c10::Stream getDefaultStream(c10::Device) const override { return only(); }
  c10::Stream getNewStream(c10::Device, int) const override { return only(); }
  c10::Stream getStreamFromGlobalPool(c10::Device, bool) const override { return only(); }
  c10::Stream exchangeStream(c10::Stream stream) const override { return stream; }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const c10::Stream&, c10::DeviceIndex, c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, c10::DeviceIndex) const noexcept override {}
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* data = bytes ? std::malloc(bytes) : nullptr;
    return {data, data, &std::free, HERE};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &std::free; }
  void copy_data(void* to, const void* from, std::size_t bytes) const final { std::memcpy(to, from, bytes); }
};
Memory memory;
REGISTER_ALLOCATOR(KIND, &memory);

struct Hooks : at::PrivateUse1HooksInterface {
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  bool isAvailable() const override { return true; }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override {
    return at::detail::getDefaultCPUGenerator();
  }
  at::Device getDeviceFromPtr(void*) const override { return HERE; }
};

using Type = std::optional<at::ScalarType>;
const c10::DispatchKeySet KEYS(c10::DispatchKey::PrivateUse1);

at::Tensor empty(at::IntArrayRef size, Type dtype, std::optional<at::Layout>, std::optional<at::Device>,
                 std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(size, &memory, KEYS, c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride, Type dtype, std::optional<at::Layout>,
                         std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &memory, KEYS, c10::dtype_or_default(dtype));
}

// The same memory as a tensor of the CPU.
at::Tensor seen(const at::Tensor& x) {
  if (!x.defined() || x.device() != HERE) return x;
  return at::from_blob(x.data_ptr(), x.sizes(), x.strides(), [x](void*) {}, x.options().device(at::kCPU), at::kCPU);
}

at::Tensor moved(const at::Tensor& x) { return x.defined() ? x.to(HERE) : x; }

at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool) {
  seen(to).copy_(seen(from));
  return to;
}

at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to) {
  if (to.sizes() != from.sizes()) to.resize_(from.sizes());
  return copy_from(from, to, false);
}

at::Scalar number(const at::Tensor& x) { return seen(x).item(); }

const at::Tensor& resize(const at::Tensor& x, c10::SymIntArrayRef wanted, std::optional<at::MemoryFormat>) {
  auto size = C10_AS_INTARRAYREF_SLOW(wanted);
  auto* tensor = x.unsafeGetTensorImpl();
  size_t bytes = (tensor->storage_offset() + c10::multiply_integers(size)) * x.itemsize();
  if (x.storage().nbytes() < bytes) {
    auto fresh = memory.allocate(bytes);
    if (x.storage().nbytes()) std::memcpy(fresh.get(), x.storage().data(), x.storage().nbytes());
    x.storage().set_data_ptr(std::move(fresh));
    x.storage().set_nbytes(bytes);
  }
  tensor->set_sizes_contiguous(size);
  return x;
}

int64_t plain_attention(const at::Tensor&, const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&,
                        double, bool, std::optional<double>, bool) {
  return 0;
}

at::Tensor convolve(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                    at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, bool transposed,
                    at::IntArrayRef more, int64_t groups) {
  TORCH_CHECK(x.device() == weight.device(), "convolution: tensors on two devices");
  auto added = bias && bias->defined() ? std::optional(seen(*bias)) : std::nullopt;
  return moved(at::convolution(seen(x), seen(weight), added, stride, padding, dilation, transposed, more, groups));
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> convolve_backward(
    const at::Tensor& gradient, const at::Tensor& x, const at::Tensor& weight, at::IntArrayRef stride,
    at::IntArrayRef padding, at::IntArrayRef dilation, bool transposed, at::IntArrayRef more, int64_t groups,
    std::array<bool, 3> wanted) {
  TORCH_CHECK(x.device() == weight.device() && x.device() == gradient.device(), "convolution: tensors on two devices");
  std::array<int64_t, 1> bias{gradient.size(1)};
  auto [of_x, of_weight, of_bias] =
      at::convolution_backward(seen(gradient), seen(x), seen(weight), at::OptionalIntArrayRef(bias), stride, padding,
                               dilation, transposed, more, groups, wanted);
  return {moved(of_x), moved(of_weight), moved(of_bias)};
}

// By itself because it changes the running statistics, and its schema does not say so.
std::tuple<at::Tensor, at::Tensor, at::Tensor> normalise(
    const at::Tensor& x, const std::optional<at::Tensor>& weight, const std::optional<at::Tensor>& bias,
    const std::optional<at::Tensor>& mean, const std::optional<at::Tensor>& variance, bool training, double momentum,
    double epsilon) {
  auto each = [&](const std::optional<at::Tensor>& y) {
    TORCH_CHECK(!y || !y->defined() || y->device() == x.device(), "batch_norm: tensors on two devices");
    return y ? std::optional(seen(*y)) : std::nullopt;
  };
  auto [out, of_mean, of_variance] = at::native_batch_norm(
      seen(x), each(weight), each(bias), each(mean), each(variance), training, momentum, epsilon);
  return {moved(out), moved(of_mean), moved(of_variance)};
}

// What CUDA too takes from the CPU: numbers of rows, and the step of an optimiser.
bool may_mix(const std::string& name) {
  for (auto* some : {"aten::index", "aten::_index_put_impl_", "aten::_unsafe_index", "aten::_foreach", "aten::_fused_"})
    if (name.rfind(some, 0) == 0) return true;
  return false;
}

void on_the_cpu(const c10::OperatorHandle& what, torch::jit::Stack* stack) {
  bool here = false, elsewhere = false;
  auto look = [&](const at::Tensor& x) {
    if (!x.defined()) return;
    (x.device() == HERE ? here : elsewhere) |= x.device() == HERE || x.dim() > 0;
  };
  for (auto& value : torch::jit::last(*stack, what.schema().arguments().size())) {
    if (value.isTensor()) look(value.toTensor());
    else if (value.isTensorList())
      for (const at::Tensor& x : value.toTensorVector()) look(x);
  }
  auto& name = what.schema().name();
  TORCH_CHECK(!(here && elsewhere) || may_mix(name), name, ": tensors on two devices");
  at::native::cpu_fallback(what, stack);
}

}  // namespace

namespace at::native {
REGISTER_PRIVATEUSE1_DISPATCH(_fused_sdp_choice_stub, &plain_attention)
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
  m.impl("_local_scalar_dense", &number);
  m.impl("resize_", &resize);
  m.impl("convolution_overrideable", &convolve);
  m.impl("convolution_backward_overrideable", &convolve_backward);
  m.impl("native_batch_norm", &normalise);
  m.impl("as_strided", TORCH_FN(at::native::as_strided_tensorimpl));
  m.impl("view", TORCH_FN(at::native::view));
  m.impl("_reshape_alias", TORCH_FN(at::native::_reshape_alias));
  m.impl("unfold", TORCH_FN(at::native::unfold));
  m.impl("set_.source_Storage_storage_offset", TORCH_FN(at::native::set_storage_cpu_));
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&on_the_cpu>()); }

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) { m.fallback(torch::CppFunction::makeFallthrough()); }

namespace at::autocast {
#define LOWER(...) KERNEL(c10::DeviceType::PrivateUse1, __VA_ARGS__, lower_precision_fp)
#define FLOAT32(...) KERNEL(c10::DeviceType::PrivateUse1, __VA_ARGS__, fp32)
#define FLOAT32_IF_NOT_GIVEN(...) KERNEL(c10::DeviceType::PrivateUse1, __VA_ARGS__, fp32_set_opt_dtype)
#define WIDEST(...) KERNEL(c10::DeviceType::PrivateUse1, __VA_ARGS__, promote)
TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {
  AT_FORALL_LOWER_PRECISION_FP(LOWER)
  AT_FORALL_FP32(FLOAT32)
  AT_FORALL_FP32_SET_OPT_DTYPE(FLOAT32_IF_NOT_GIVEN)
  AT_FORALL_DIFFERENT_REDISPATCH_SIGNATURE(KERNEL_DIFFERENT_REDISPATCH_SIGNATURE_PRIVATEUSEONE)
  AT_FORALL_PROMOTE(WIDEST)
}
}  // namespace at::autocast

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("register", [] {
    static Hooks hooks;
    at::RegisterPrivateUse1HooksInterface(&hooks);
  });
}
