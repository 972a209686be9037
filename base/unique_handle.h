#pragma once
/// One owner for a C handle. `Traits` says the handle's type, its null value and how to close it.

#include <utility>

namespace librarian {

/// Move-only owner. Traits: `using Raw`, `static constexpr Raw null`, `static void close(Raw)`.
template <typename Traits>
class UniqueHandle {
 public:
  using Raw = typename Traits::Raw;

  UniqueHandle() = default;
  explicit UniqueHandle(Raw raw) : raw_(raw) {}
  UniqueHandle(UniqueHandle&& other) noexcept : raw_(std::exchange(other.raw_, Traits::null)) {}
  UniqueHandle& operator=(UniqueHandle&& other) noexcept {
    if (this != &other) {
      reset();
      raw_ = std::exchange(other.raw_, Traits::null);
    }
    return *this;
  }
  UniqueHandle(const UniqueHandle&) = delete;
  UniqueHandle& operator=(const UniqueHandle&) = delete;
  ~UniqueHandle() { reset(); }

  Raw get() const { return raw_; }
  explicit operator bool() const { return raw_ != Traits::null; }
  void reset() {
    if (raw_ != Traits::null) {
      Traits::close(std::exchange(raw_, Traits::null));
    }
  }

 private:
  Raw raw_ = Traits::null;
};

}  // namespace librarian
