#include "gpu_exec/cuda_library.h"

#include <cublasLt.h>

#include <array>
#include <utility>
#include <vector>

#include "base/unique_handle.h"

namespace librarian::gpu_exec {
namespace {

constexpr int kCandidates = 32;
constexpr std::uint32_t kAlignmentBytes = 16;

struct HandleTraits {
  using Raw = cublasLtHandle_t;
  static constexpr Raw null = nullptr;
  static void close(Raw handle) noexcept { static_cast<void>(cublasLtDestroy(handle)); }
};
struct OperationTraits {
  using Raw = cublasLtMatmulDesc_t;
  static constexpr Raw null = nullptr;
  static void close(Raw operation) noexcept {
    static_cast<void>(cublasLtMatmulDescDestroy(operation));
  }
};
struct LayoutTraits {
  using Raw = cublasLtMatrixLayout_t;
  static constexpr Raw null = nullptr;
  static void close(Raw layout) noexcept { static_cast<void>(cublasLtMatrixLayoutDestroy(layout)); }
};
struct PreferenceTraits {
  using Raw = cublasLtMatmulPreference_t;
  static constexpr Raw null = nullptr;
  static void close(Raw preference) noexcept {
    static_cast<void>(cublasLtMatmulPreferenceDestroy(preference));
  }
};

cudaDataType_t data_type(DType type) {
  switch (type) {
    case DType::bf16:
      return CUDA_R_16BF;
    case DType::f16:
      return CUDA_R_16F;
    case DType::f32:
      return CUDA_R_32F;
  }
  LIB_CHECK(false);
}

/// A matrix of `fast` elements that lie together, `slow` times.
UniqueHandle<LayoutTraits> layout(DType type, std::uint64_t fast, std::uint64_t slow,
                                  std::uint64_t stride) {
  cublasLtMatrixLayout_t raw = nullptr;
  static_cast<void>(cublasLtMatrixLayoutCreate(&raw, data_type(type), fast, slow,
                                               static_cast<std::int64_t>(stride)));
  return UniqueHandle<LayoutTraits>(raw);
}

/// What the library calls A, B and D: it thinks in columns, so our rows are its columns, and
/// y^T = w * x^T.
struct Problem {
  UniqueHandle<OperationTraits> operation;
  UniqueHandle<LayoutTraits> w, x, y;
  bool made() const { return operation && w && x && y; }
};

Problem problem_of(const ProductShape& shape, std::uint64_t w_stride, std::uint64_t x_stride,
                   std::uint64_t y_stride) {
  Problem problem;
  cublasLtMatmulDesc_t operation = nullptr;
  // Pedantic: f32 is f32, whatever the environment allows.
  const cublasComputeType_t compute =
      shape.type == DType::f32 ? CUBLAS_COMPUTE_32F_PEDANTIC : CUBLAS_COMPUTE_32F;
  static_cast<void>(cublasLtMatmulDescCreate(&operation, compute, CUDA_R_32F));
  problem.operation = UniqueHandle<OperationTraits>(operation);
  const cublasOperation_t turn = shape.w_transposed ? CUBLAS_OP_N : CUBLAS_OP_T;
  static_cast<void>(
      cublasLtMatmulDescSetAttribute(operation, CUBLASLT_MATMUL_DESC_TRANSA, &turn, sizeof turn));
  problem.w = shape.w_transposed ? layout(shape.type, shape.outputs, shape.inputs, w_stride)
                                 : layout(shape.type, shape.inputs, shape.outputs, w_stride);
  problem.x = layout(shape.type, shape.inputs, CudaLibrary::kRows, x_stride);
  problem.y = layout(shape.out, shape.outputs, CudaLibrary::kRows, y_stride);
  return problem;
}

template <typename T>
T config_of(const cublasLtMatmulAlgo_t& algorithm, cublasLtMatmulAlgoConfigAttributes_t attribute) {
  T value{};
  std::size_t written = 0;
  static_cast<void>(
      cublasLtMatmulAlgoConfigGetAttribute(&algorithm, attribute, &value, sizeof value, &written));
  return value;
}

template <typename T>
void prefer(cublasLtMatmulPreference_t preference, cublasLtMatmulPreferenceAttributes_t attribute,
            T value) {
  static_cast<void>(
      cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof value));
}

}  // namespace

struct CudaLibrary::Impl {
  UniqueHandle<HandleTraits> handle;
  std::vector<cublasLtMatmulAlgo_t> algorithms;
};

Result<std::unique_ptr<CudaLibrary>> CudaLibrary::create() {
  auto impl = std::make_unique<Impl>();
  cublasLtHandle_t handle = nullptr;
  if (const cublasStatus_t status = cublasLtCreate(&handle); status != CUBLAS_STATUS_SUCCESS) {
    return Error(ErrorCode::internal,
                 std::string("cuBLASLt does not start: ") + cublasLtGetStatusString(status));
  }
  impl->handle = UniqueHandle<HandleTraits>(handle);
  return std::unique_ptr<CudaLibrary>(new CudaLibrary(std::move(impl)));
}

CudaLibrary::CudaLibrary(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
CudaLibrary::~CudaLibrary() = default;

std::string CudaLibrary::version() const {
  return "cublaslt-" + std::to_string(cublasLtGetVersion());
}

std::optional<ProductPlan> CudaLibrary::plan(const ProductShape& shape) {
  const Problem problem = problem_of(shape, shape.w_transposed ? shape.outputs : shape.inputs,
                                     shape.inputs, shape.outputs);
  cublasLtMatmulPreference_t raw = nullptr;
  static_cast<void>(cublasLtMatmulPreferenceCreate(&raw));
  const UniqueHandle<PreferenceTraits> preference(raw);
  if (!problem.made() || !preference) {
    return std::nullopt;
  }
  prefer<std::uint64_t>(raw, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, 0);
  prefer<std::uint32_t>(raw, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                        CUBLASLT_REDUCTION_SCHEME_NONE);
  for (const auto attribute :
       {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES}) {
    prefer<std::uint32_t>(raw, attribute, kAlignmentBytes);
  }
  std::array<cublasLtMatmulHeuristicResult_t, kCandidates> found{};
  int count = 0;
  static_cast<void>(cublasLtMatmulAlgoGetHeuristic(
      impl_->handle.get(), problem.operation.get(), problem.w.get(), problem.x.get(),
      problem.y.get(), problem.y.get(), raw, kCandidates, found.data(), &count));
  for (int i = 0; i < count; ++i) {
    const cublasLtMatmulHeuristicResult_t& candidate = found[static_cast<std::size_t>(i)];
    const cublasLtMatmulAlgo_t& algorithm = candidate.algo;
    if (candidate.state != CUBLAS_STATUS_SUCCESS || candidate.workspaceSize != 0 ||
        config_of<std::int32_t>(algorithm, CUBLASLT_ALGO_CONFIG_SPLITK_NUM) > 1 ||
        config_of<std::uint32_t>(algorithm, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME) !=
            CUBLASLT_REDUCTION_SCHEME_NONE) {
      continue;
    }
    impl_->algorithms.push_back(algorithm);
    ProductPlan plan;
    plan.engine = ProductPlan::Engine::library;
    plan.algorithm = static_cast<int>(impl_->algorithms.size()) - 1;
    const auto add = [&](const char* name, auto value) {
      plan.text += (plan.text.empty() ? "" : " ") + std::string(name) + " " + std::to_string(value);
    };
    add("algorithm", config_of<std::int32_t>(algorithm, CUBLASLT_ALGO_CONFIG_ID));
    add("tile", config_of<std::uint32_t>(algorithm, CUBLASLT_ALGO_CONFIG_TILE_ID));
    add("stages", config_of<std::uint32_t>(algorithm, CUBLASLT_ALGO_CONFIG_STAGES_ID));
    add("option", config_of<std::uint32_t>(algorithm, CUBLASLT_ALGO_CONFIG_CUSTOM_OPTION));
    add("swizzle", config_of<std::uint32_t>(algorithm, CUBLASLT_ALGO_CONFIG_CTA_SWIZZLING));
    add("shape", config_of<std::uint16_t>(algorithm, CUBLASLT_ALGO_CONFIG_INNER_SHAPE_ID));
    add("cluster", config_of<std::uint16_t>(algorithm, CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID));
    return plan;
  }
  return std::nullopt;
}

std::string CudaLibrary::multiply(const CudaProduct& product, const ProductPlan& plan,
                                  void* cuda_stream) {
  const ProductShape shape{product.type, product.out,    product.w_transposed,
                           true,         product.inputs, product.outputs};
  const Problem problem = problem_of(shape, product.w_stride, product.x_stride, product.y_stride);
  if (!problem.made()) {
    return "cuBLASLt has no descriptors";
  }
  const float one = 1;
  const float zero = 0;
  const cublasStatus_t status =
      cublasLtMatmul(impl_->handle.get(), problem.operation.get(), &one, product.w, problem.w.get(),
                     product.x, problem.x.get(), &zero, product.y, problem.y.get(), product.y,
                     problem.y.get(), &impl_->algorithms[static_cast<std::size_t>(plan.algorithm)],
                     nullptr, 0, static_cast<cudaStream_t>(cuda_stream));
  return status == CUBLAS_STATUS_SUCCESS ? "" : cublasLtGetStatusString(status);
}

}  // namespace librarian::gpu_exec
