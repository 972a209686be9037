#pragma once
/// A device that passes everything on to another: the base of doubles that change one thing.

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "gpu_exec/device.h"

namespace librarian::gpu_exec {

class ForwardingDevice : public Device {
 public:
  explicit ForwardingDevice(std::unique_ptr<Device> inner) : inner_(std::move(inner)) {}

  std::string kind() const override { return inner_->kind(); }
  int threads() const override { return inner_->threads(); }
  double peak_flops(DType type) override { return inner_->peak_flops(type); }
  std::vector<std::string> warnings(DType type) const override { return inner_->warnings(type); }
  Result<std::vector<std::string>> plan_products(std::span<const ProductSize> sizes,
                                                 DType type) override {
    return inner_->plan_products(sizes, type);
  }
  bool works_on_host_memory() const override { return inner_->works_on_host_memory(); }
  std::uint64_t weight_buffers() const override { return inner_->weight_buffers(); }
  std::uint64_t row_unit() const override { return inner_->row_unit(); }
  std::uint64_t memory_limit() const override { return inner_->memory_limit(); }
  std::uint64_t host_bytes() const override { return inner_->host_bytes(); }
  std::uint64_t staging_bytes() const override { return inner_->staging_bytes(); }
  Result<DeviceMemory> allocate(std::uint64_t bytes) override { return inner_->allocate(bytes); }
  Result<DeviceMemory> allocate_host(std::uint64_t bytes) override {
    return inner_->allocate_host(bytes);
  }
  void copy_in(const std::byte* host, std::byte* device, std::uint64_t bytes) override {
    inner_->copy_in(host, device, bytes);
  }
  void copy_out(const std::byte* device, std::byte* host, std::uint64_t bytes) override {
    inner_->copy_out(device, host, bytes);
  }
  void copy(const std::byte* from, std::byte* to, std::uint64_t bytes) override {
    inner_->copy(from, to, bytes);
  }
  Ticket mark(Queue queue) override { return inner_->mark(queue); }
  void wait(Queue queue, Ticket ticket) override { inner_->wait(queue, ticket); }
  Result<bool> reached(Ticket ticket) override { return inner_->reached(ticket); }
  std::uint64_t packed_bytes(std::uint64_t outputs, std::uint64_t inputs,
                             DType type) const override {
    return inner_->packed_bytes(outputs, inputs, type);
  }
  std::uint64_t vector_bytes(std::uint64_t count) const override {
    return inner_->vector_bytes(count);
  }
  std::uint64_t scratch_bytes(const ScratchNeeds& needs) const override {
    return inner_->scratch_bytes(needs);
  }
  void pack_matrix(const MatrixSource& source, std::uint64_t outputs, std::uint64_t inputs,
                   std::byte* packed) override {
    inner_->pack_matrix(source, outputs, inputs, packed);
  }
  void load_vector(const VectorSource& source, std::uint64_t count, float* out) override {
    inner_->load_vector(source, count, out);
  }
  void linear(const LinearOp& op, std::byte* scratch, const std::stop_token& stop) override {
    inner_->linear(op, scratch, stop);
  }
  void glu(const GluOp& op, std::byte* scratch, const std::stop_token& stop) override {
    inner_->glu(op, scratch, stop);
  }
  void attention(const AttentionOp& op, std::byte* scratch, const std::stop_token& stop) override {
    inner_->attention(op, scratch, stop);
  }
  void rope_table(const RopeTableOp& op, std::byte* scratch) override {
    inner_->rope_table(op, scratch);
  }
  void rotate(const RotateOp& op, std::byte* scratch) override { inner_->rotate(op, scratch); }
  void norm(const NormOp& op) override { inner_->norm(op); }
  void add(const AddOp& op) override { inner_->add(op); }
  void topk(const TopkOp& op) override { inner_->topk(op); }
  bool runs_experts() const override { return inner_->runs_experts(); }
  void route(const RouteOp& op) override { inner_->route(op); }
  void gather(const GatherOp& op) override { inner_->gather(op); }
  void combine(const CombineOp& op) override { inner_->combine(op); }
  void round(const RoundOp& op) override { inner_->round(op); }
  void clear(std::byte* at, std::uint64_t bytes) override { inner_->clear(at, bytes); }

 private:
  std::unique_ptr<Device> inner_;
};

/// A device with so much memory and no more, and on request with all else that sets a GPU apart:
/// rows are copied to it, and weights have two buffers.
class LimitedDevice : public ForwardingDevice {
 public:
  enum class Kind : std::uint8_t { host_memory, own_memory };
  LimitedDevice(std::unique_ptr<Device> inner, std::uint64_t bytes, Kind kind = Kind::host_memory)
      : ForwardingDevice(std::move(inner)), bytes_(bytes), kind_(kind) {}

  bool works_on_host_memory() const override { return kind_ == Kind::host_memory; }
  std::uint64_t weight_buffers() const override { return kind_ == Kind::host_memory ? 1 : 2; }
  std::uint64_t memory_limit() const override { return bytes_; }
  Result<DeviceMemory> allocate(std::uint64_t bytes) override {
    if (bytes > bytes_) {
      return Error(ErrorCode::does_not_fit, "the device has " + std::to_string(bytes_) +
                                                " bytes, not " + std::to_string(bytes));
    }
    allocated_bytes = bytes;
    return ForwardingDevice::allocate(bytes);
  }

  std::uint64_t allocated_bytes = 0;  ///< Last.

 private:
  std::uint64_t bytes_;
  Kind kind_;
};

}  // namespace librarian::gpu_exec
