#include "tests/support/memory_file_system.h"

#include <algorithm>
#include <cstring>

namespace librarian::testing {

struct MemoryFileSystem::Node {
  std::uint64_t inode = 0;
  bool is_directory = false;
  bool locked = false;              // Exclusively.
  std::uint64_t locked_shared = 0;  // By so many.
  std::int64_t modified_ns = 0;
  std::string data;
  std::string durable_data;
  std::map<std::string, std::shared_ptr<Node>> entries;
  std::map<std::string, std::shared_ptr<Node>> durable_entries;

  void restart(Survival survival) {
    locked = false;
    locked_shared = 0;
    if (survival == Survival::durable_only) {
      data = durable_data;
      entries = durable_entries;
    } else if (survival == Survival::torn && data.size() > durable_data.size()) {
      data.resize(durable_data.size() + (data.size() - durable_data.size()) / 2);
    }
    durable_data = data;
    durable_entries = entries;
    for (auto& [name, child] : entries) {
      child->restart(survival);
    }
  }

  void snapshot(const std::string& path, std::map<std::string, std::string>& into) const {
    for (const auto& [name, child] : entries) {
      const std::string child_path = path + "/" + name;
      if (child->is_directory) {
        child->snapshot(child_path, into);
      } else {
        into[child_path] = child->data;
      }
    }
  }
};

class MemoryFileSystem::OpenFile final : public File {
 public:
  OpenFile(MemoryFileSystem& files, std::shared_ptr<Node> node, std::string path, bool writable)
      : files_(files),
        node_(std::move(node)),
        path_(std::move(path)),
        writable_(writable),
        boot_(files.boot_) {}

  ~OpenFile() override {
    const std::lock_guard<std::mutex> guard(files_.mutex_);
    if (boot_ == files_.boot_) {
      unlock();
    }
  }

  Result<void> append(std::span<const std::byte> bytes) override {
    const std::lock_guard<std::mutex> guard(files_.mutex_);
    LIB_TRY_VOID(change());
    if (bytes.size() > files_.free_bytes_) {
      return Error(ErrorCode::no_space, "cannot write " + path_ + ": no space left");
    }
    files_.free_bytes_ -= bytes.size();
    node_->data.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    return {};
  }
  Result<void> write_at(std::uint64_t offset, std::span<const std::byte> bytes) override {
    const std::lock_guard<std::mutex> guard(files_.mutex_);
    LIB_TRY_VOID(change());
    const std::size_t end = static_cast<std::size_t>(offset) + bytes.size();
    const std::size_t growth = end > node_->data.size() ? end - node_->data.size() : 0;
    if (growth > files_.free_bytes_) {
      return Error(ErrorCode::no_space, "cannot write " + path_ + ": no space left");
    }
    files_.free_bytes_ -= growth;
    node_->data.resize(node_->data.size() + growth);
    std::memcpy(node_->data.data() + offset, bytes.data(), bytes.size());
    return {};
  }
  Result<std::size_t> read_at(std::uint64_t offset, std::span<std::byte> into) const override {
    const std::lock_guard<std::mutex> guard(files_.mutex_);
    if (offset >= node_->data.size() || into.empty()) {
      return std::size_t{0};
    }
    const std::size_t count =
        std::min<std::size_t>(into.size(), node_->data.size() - static_cast<std::size_t>(offset));
    std::memcpy(into.data(), node_->data.data() + offset, count);
    return count;
  }
  Result<void> sync_data() override {
    const std::lock_guard<std::mutex> guard(files_.mutex_);
    LIB_TRY_VOID(change());
    node_->durable_data = node_->data;
    return {};
  }
  Result<std::uint64_t> size() const override {
    const std::lock_guard<std::mutex> guard(files_.mutex_);
    return static_cast<std::uint64_t>(node_->data.size());
  }
  Result<void> truncate(std::uint64_t size) override {
    const std::lock_guard<std::mutex> guard(files_.mutex_);
    LIB_TRY_VOID(change());
    node_->data.resize(static_cast<std::size_t>(size));
    return {};
  }
  Result<void> reserve(std::uint64_t size) override {
    const std::lock_guard<std::mutex> guard(files_.mutex_);
    LIB_TRY_VOID(change());
    if (size <= node_->data.size()) {
      return {};
    }
    const std::uint64_t growth = size - node_->data.size();
    if (growth > files_.free_bytes_) {
      return Error(ErrorCode::no_space, "cannot reserve room for " + path_ + ": no space left");
    }
    files_.free_bytes_ -= growth;
    node_->data.resize(static_cast<std::size_t>(size));
    return {};
  }
  Result<void> touch() override {
    const std::lock_guard<std::mutex> guard(files_.mutex_);
    node_->modified_ns = ++files_.now_ns_;
    return {};
  }
  Result<bool> try_lock() override {
    const std::lock_guard<std::mutex> guard(files_.mutex_);
    if ((node_->locked && !holds_lock_) || node_->locked_shared > (holds_shared_ ? 1U : 0U)) {
      return false;
    }
    unlock();
    node_->locked = holds_lock_ = true;
    return true;
  }
  Result<bool> try_lock_shared() override {
    const std::lock_guard<std::mutex> guard(files_.mutex_);
    if (node_->locked && !holds_lock_) {
      return false;
    }
    unlock();
    ++node_->locked_shared;
    return holds_shared_ = true;
  }
  Result<std::uint64_t> inode() const override { return node_->inode; }

 private:
  Result<void> change() {
    if (boot_ != files_.boot_) {
      return Error(ErrorCode::io, path_ + " was opened before the restart");
    }
    LIB_CHECK(writable_);
    return files_.count_operation();
  }

  void unlock() {
    node_->locked = node_->locked && !holds_lock_;
    node_->locked_shared -= holds_shared_ ? 1 : 0;
    holds_lock_ = holds_shared_ = false;
  }

  MemoryFileSystem& files_;
  std::shared_ptr<Node> node_;
  std::string path_;
  bool writable_;
  bool holds_lock_ = false;
  bool holds_shared_ = false;
  std::uint64_t boot_;
};

MemoryFileSystem::MemoryFileSystem() : root_(make_node(true)) {}
MemoryFileSystem::~MemoryFileSystem() = default;

std::shared_ptr<MemoryFileSystem::Node> MemoryFileSystem::make_node(bool is_directory) {
  auto node = std::make_shared<Node>();
  node->inode = next_inode_++;
  node->is_directory = is_directory;
  return node;
}

void MemoryFileSystem::crash_at(std::uint64_t operation) {
  const std::lock_guard<std::mutex> guard(mutex_);
  crash_at_ = operation;
}

void MemoryFileSystem::restart(Survival survival) {
  const std::lock_guard<std::mutex> guard(mutex_);
  root_->restart(survival);
  crash_at_.reset();
  operations_ = 0;
  ++boot_;
}

std::uint64_t MemoryFileSystem::operations() const {
  const std::lock_guard<std::mutex> guard(mutex_);
  return operations_;
}

void MemoryFileSystem::set_free_bytes(std::uint64_t bytes) {
  const std::lock_guard<std::mutex> guard(mutex_);
  free_bytes_ = bytes;
}

void MemoryFileSystem::corrupt(const std::string& path, std::uint64_t offset, std::byte xor_with) {
  const std::lock_guard<std::mutex> guard(mutex_);
  auto place = find(path);
  LIB_CHECK(place && place->node && offset < place->node->data.size());
  char& byte = place->node->data[static_cast<std::size_t>(offset)];
  byte = static_cast<char>(static_cast<unsigned char>(byte) ^ static_cast<unsigned char>(xor_with));
}

std::map<std::string, std::string> MemoryFileSystem::snapshot() const {
  const std::lock_guard<std::mutex> guard(mutex_);
  std::map<std::string, std::string> result;
  root_->snapshot("", result);
  return result;
}

Result<void> MemoryFileSystem::count_operation() {
  ++operations_;
  if (crash_at_ && operations_ >= *crash_at_) {
    return Error(ErrorCode::io, "the machine crashed");
  }
  return {};
}

Result<MemoryFileSystem::Place> MemoryFileSystem::find(const std::string& path) const {
  Place place{nullptr, "", root_};
  std::size_t at = 0;
  while (at < path.size()) {
    const std::size_t begin = path.find_first_not_of('/', at);
    if (begin == std::string::npos) {
      break;
    }
    const std::size_t end = std::min(path.find('/', begin), path.size());
    if (!place.node || !place.node->is_directory) {
      return Error(ErrorCode::not_found, path + ": no such directory");
    }
    place.directory = place.node;
    place.name = path.substr(begin, end - begin);
    const auto found = place.directory->entries.find(place.name);
    place.node = found == place.directory->entries.end() ? nullptr : found->second;
    at = end;
  }
  return place;
}

Result<std::unique_ptr<File>> MemoryFileSystem::create(const std::string& path) {
  const std::lock_guard<std::mutex> guard(mutex_);
  LIB_TRY(const Place place, find(path));
  if (place.node) {
    return Error(ErrorCode::already_exists, path + " exists");
  }
  LIB_TRY_VOID(count_operation());
  auto node = make_node(false);
  place.directory->entries[place.name] = node;
  return std::make_unique<OpenFile>(*this, node, path, true);
}

Result<std::unique_ptr<File>> MemoryFileSystem::create_sparse(const std::string& path) {
  return create(path);
}

Result<std::unique_ptr<File>> MemoryFileSystem::open_sparse(const std::string& path) {
  return open_append(path, false);
}

Result<std::unique_ptr<File>> MemoryFileSystem::open(const std::string& path) {
  const std::lock_guard<std::mutex> guard(mutex_);
  LIB_TRY(const Place place, find(path));
  if (!place.node || place.node->is_directory) {
    return Error(ErrorCode::not_found, "cannot open " + path + ": no such file");
  }
  return std::make_unique<OpenFile>(*this, place.node, path, false);
}

Result<std::unique_ptr<File>> MemoryFileSystem::open_append(const std::string& path,
                                                            bool create_if_missing) {
  const std::lock_guard<std::mutex> guard(mutex_);
  LIB_TRY(Place place, find(path));
  if (!place.node) {
    if (!create_if_missing) {
      return Error(ErrorCode::not_found, "cannot open " + path + ": no such file");
    }
    LIB_TRY_VOID(count_operation());
    place.node = make_node(false);
    place.directory->entries[place.name] = place.node;
  }
  return std::make_unique<OpenFile>(*this, place.node, path, true);
}

Result<FileInfo> MemoryFileSystem::info(const std::string& path) {
  const std::lock_guard<std::mutex> guard(mutex_);
  LIB_TRY(const Place place, find(path));
  if (!place.node) {
    return Error(ErrorCode::not_found, path + ": no such file");
  }
  return FileInfo{place.node->is_directory ? FileKind::directory : FileKind::file,
                  place.node->data.size(), place.node->modified_ns, place.node->inode, 0};
}

Result<std::vector<std::string>> MemoryFileSystem::list(const std::string& path) {
  const std::lock_guard<std::mutex> guard(mutex_);
  LIB_TRY(const Place place, find(path));
  if (!place.node || !place.node->is_directory) {
    return Error(ErrorCode::not_found, path + ": no such directory");
  }
  std::vector<std::string> names;
  for (const auto& [name, node] : place.node->entries) {
    names.push_back(name);
  }
  return names;
}

Result<void> MemoryFileSystem::make_directory(const std::string& path) {
  const std::lock_guard<std::mutex> guard(mutex_);
  LIB_TRY(const Place place, find(path));
  if (place.node) {
    if (place.node->is_directory) {
      return {};
    }
    return Error(ErrorCode::io, path + " is not a directory");
  }
  LIB_TRY_VOID(count_operation());
  place.directory->entries[place.name] = make_node(true);
  return {};
}

Result<void> MemoryFileSystem::make_private_directory(const std::string& path) {
  return make_directory(path);
}

Result<void> MemoryFileSystem::rename(const std::string& from, const std::string& to) {
  const std::lock_guard<std::mutex> guard(mutex_);
  LIB_TRY(const Place source, find(from));
  LIB_TRY(const Place target, find(to));
  if (!source.node) {
    return Error(ErrorCode::not_found, from + ": no such file");
  }
  if (target.node && target.node->is_directory) {
    return Error(ErrorCode::already_exists, to + " is a directory");
  }
  LIB_TRY_VOID(count_operation());
  source.directory->entries.erase(source.name);
  target.directory->entries[target.name] = source.node;
  return {};
}

Result<void> MemoryFileSystem::link(const std::string& from, const std::string& to) {
  const std::lock_guard<std::mutex> guard(mutex_);
  LIB_TRY(const Place source, find(from));
  LIB_TRY(const Place target, find(to));
  if (!source.node) {
    return Error(ErrorCode::not_found, from + ": no such file");
  }
  if (target.node) {
    return Error(ErrorCode::already_exists, to + " exists");
  }
  LIB_TRY_VOID(count_operation());
  target.directory->entries[target.name] = source.node;
  return {};
}

Result<void> MemoryFileSystem::remove_file(const std::string& path) {
  const std::lock_guard<std::mutex> guard(mutex_);
  LIB_TRY(const Place place, find(path));
  if (!place.node) {
    return {};
  }
  LIB_TRY_VOID(count_operation());
  place.directory->entries.erase(place.name);
  return {};
}

Result<void> MemoryFileSystem::remove_directory(const std::string& path) {
  const std::lock_guard<std::mutex> guard(mutex_);
  LIB_TRY(const Place place, find(path));
  if (!place.node) {
    return {};
  }
  if (!place.node->entries.empty()) {
    return Error(ErrorCode::io, path + ": directory not empty");
  }
  LIB_TRY_VOID(count_operation());
  place.directory->entries.erase(place.name);
  return {};
}

Result<void> MemoryFileSystem::sync_directory(const std::string& path) {
  const std::lock_guard<std::mutex> guard(mutex_);
  LIB_TRY(const Place place, find(path));
  if (!place.node || !place.node->is_directory) {
    return Error(ErrorCode::not_found, path + ": no such directory");
  }
  LIB_TRY_VOID(count_operation());
  place.node->durable_entries = place.node->entries;
  return {};
}

Result<std::uint64_t> MemoryFileSystem::free_bytes(const std::string& /*path*/) {
  const std::lock_guard<std::mutex> guard(mutex_);
  return free_bytes_;
}

}  // namespace librarian::testing
