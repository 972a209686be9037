// nexus_librarian._decoder: the store's C++ reader for Python, against CPython's limited API.
// Facts cross as JSON text and rows as bytes in the caller's buffer, so nothing of the format is
// written twice. No call starts a thread; those that read files or decode release the GIL.
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <memory>
#include <new>
#include <span>
#include <string>

#include "activation_store/python/decoder/store_access.h"
#include "base/digest.h"

namespace librarian::activation_store::python {
namespace {

PyObject* store_error = nullptr;
PyObject* damaged_error = nullptr;
PyObject* not_found_error = nullptr;
PyObject* format_error = nullptr;

PyObject* exception_of(ErrorCode code) {
  switch (code) {
    case ErrorCode::corrupt:
      return damaged_error;
    case ErrorCode::not_found:
      return not_found_error;
    case ErrorCode::bad_input:
      return format_error;
    case ErrorCode::invalid_argument:
      return PyExc_ValueError;
    case ErrorCode::io:
      return PyExc_OSError;
    default:
      return store_error;
  }
}

PyObject* raise(const Error& error) {
  PyErr_SetString(exception_of(error.code()), error.message().c_str());
  return nullptr;
}

/// Runs `work` without the GIL. What the standard library throws must not cross into C.
template <typename Work>
auto without_gil(Work work) -> decltype(work()) {
  PyThreadState* const state = PyEval_SaveThread();
  decltype(work()) result = Error(ErrorCode::internal, "unreachable");
  try {
    result = work();
  } catch (const std::bad_alloc&) {
    result = Error(ErrorCode::does_not_fit, "the reader has no memory left");
  } catch (const std::exception& exception) {
    result = Error(ErrorCode::internal, exception.what());
  }
  PyEval_RestoreThread(state);
  return result;
}

PyObject* text_or_raise(const Result<std::string>& text) {
  return text ? PyUnicode_DecodeUTF8(text->data(), static_cast<Py_ssize_t>(text->size()), "replace")
              : raise(text.error());
}

PyObject* bytes_or_raise(const Result<std::vector<std::byte>>& bytes) {
  return bytes ? PyBytes_FromStringAndSize(reinterpret_cast<const char*>(bytes->data()),
                                           static_cast<Py_ssize_t>(bytes->size()))
               : raise(bytes.error());
}

/// A Python object that owns one C++ value.
template <typename T>
struct Holder {
  PyObject_HEAD  // NOLINT: the macro is the base
      T* value;
};

template <typename T>
T& value_of(PyObject* self) {
  return *reinterpret_cast<Holder<T>*>(self)->value;
}

template <typename T>
PyObject* hold(PyTypeObject* type, T value) {
  PyObject* const self = PyType_GenericAlloc(type, 0);
  if (self != nullptr) {
    reinterpret_cast<Holder<T>*>(self)->value = new T(std::move(value));
  }
  return self;
}

template <typename T>
void destroy(PyObject* self) {
  PyTypeObject* const type = Py_TYPE(self);
  delete reinterpret_cast<Holder<T>*>(self)->value;
  PyObject_Free(self);
  Py_DECREF(type);
}

PyTypeObject* part_type = nullptr;
PyTypeObject* job_type = nullptr;

PyObject* open_job(PyObject* /*module*/, PyObject* arguments) {
  const char* directory = nullptr;
  if (PyArg_ParseTuple(arguments, "s", &directory) == 0) {
    return nullptr;
  }
  const std::string path(directory);
  auto job = without_gil([&] { return JobAccess::open(path); });
  return job ? hold(job_type, *std::move(job)) : raise(job.error());
}

PyObject* writable_memory(PyObject* /*module*/, PyObject* arguments) {
  unsigned long long address = 0;  // NOLINT(google-runtime-int)
  Py_ssize_t bytes = 0;
  if (PyArg_ParseTuple(arguments, "Kn", &address, &bytes) == 0) {
    return nullptr;
  }
  // NOLINTNEXTLINE(performance-no-int-to-ptr): a tensor's data_ptr() comes as a number
  auto* const memory = reinterpret_cast<char*>(static_cast<std::uintptr_t>(address));
  return PyMemoryView_FromMemory(memory, bytes, PyBUF_WRITE);
}

PyObject* job_facts(PyObject* self, PyObject* /*unused*/) {
  const JobAccess& job = value_of<JobAccess>(self);
  return text_or_raise(without_gil([&] { return Result<std::string>(job.facts()); }));
}

PyObject* job_complete_parts(PyObject* self, PyObject* /*unused*/) {
  const JobAccess& job = value_of<JobAccess>(self);
  const auto parts = without_gil([&] { return job.complete_parts(); });
  if (!parts) {
    return raise(parts.error());
  }
  PyObject* const list = PyList_New(static_cast<Py_ssize_t>(parts->size()));
  for (std::size_t i = 0; list != nullptr && i < parts->size(); ++i) {
    PyList_SetItem(list, static_cast<Py_ssize_t>(i), PyLong_FromUnsignedLongLong((*parts)[i]));
  }
  return list;
}

PyObject* job_open_part(PyObject* self, PyObject* arguments) {
  unsigned long long index = 0;  // NOLINT(google-runtime-int): the format character's type
  if (PyArg_ParseTuple(arguments, "K", &index) == 0) {
    return nullptr;
  }
  const JobAccess& job = value_of<JobAccess>(self);
  auto part = without_gil([&] { return job.open_part(index); });
  return part ? hold(part_type, *std::move(part)) : raise(part.error());
}

PyObject* part_facts(PyObject* self, PyObject* /*unused*/) {
  const PartAccess& part = value_of<PartAccess>(self);
  return text_or_raise(without_gil([&] { return Result<std::string>(part.facts()); }));
}

PyObject* part_array_facts(PyObject* self, PyObject* arguments) {
  const char* name = nullptr;
  if (PyArg_ParseTuple(arguments, "s", &name) == 0) {
    return nullptr;
  }
  const std::string array(name);
  const PartAccess& part = value_of<PartAccess>(self);
  return text_or_raise(without_gil([&] { return part.array_facts(array); }));
}

PyObject* part_tokens(PyObject* self, PyObject* arguments) {
  const char* name = nullptr;
  if (PyArg_ParseTuple(arguments, "s", &name) == 0) {
    return nullptr;
  }
  const std::string array(name);
  const PartAccess& part = value_of<PartAccess>(self);
  return bytes_or_raise(without_gil([&] { return part.tokens(array); }));
}

/// Calls read(array, begin, end, bytes) with the GIL released and the bytes of the buffer.
template <typename Read>
PyObject* read_into_buffer(PyObject* target, Read read) {
  Py_buffer buffer;
  if (PyObject_GetBuffer(target, &buffer, PyBUF_WRITABLE | PyBUF_C_CONTIGUOUS) != 0) {
    return nullptr;
  }
  const std::span<std::byte> bytes(static_cast<std::byte*>(buffer.buf),
                                   static_cast<std::size_t>(buffer.len));
  const auto done = without_gil([&] { return read(bytes); });
  PyBuffer_Release(&buffer);
  if (!done) {
    return raise(done.error());
  }
  Py_RETURN_NONE;
}

PyObject* part_read_rows(PyObject* self, PyObject* arguments) {
  const char* name = nullptr;
  unsigned long long begin = 0;  // NOLINT(google-runtime-int)
  unsigned long long end = 0;    // NOLINT(google-runtime-int)
  PyObject* target = nullptr;
  if (PyArg_ParseTuple(arguments, "sKKO", &name, &begin, &end, &target) == 0) {
    return nullptr;
  }
  const std::string array(name);
  const PartAccess& part = value_of<PartAccess>(self);
  return read_into_buffer(
      target, [&](std::span<std::byte> bytes) { return part.read_rows(array, begin, end, bytes); });
}

PyObject* part_read_dequantised(PyObject* self, PyObject* arguments) {
  const char* name = nullptr;
  unsigned long long begin = 0;  // NOLINT(google-runtime-int)
  unsigned long long end = 0;    // NOLINT(google-runtime-int)
  const char* type_name = nullptr;
  PyObject* target = nullptr;
  if (PyArg_ParseTuple(arguments, "sKKsO", &name, &begin, &end, &type_name, &target) == 0) {
    return nullptr;
  }
  const auto type = parse_stored_type(type_name);
  if (!type) {
    return raise(type.error());
  }
  const std::string array(name);
  const PartAccess& part = value_of<PartAccess>(self);
  return read_into_buffer(target, [&](std::span<std::byte> bytes) {
    return part.read_dequantised(array, begin, end, *type, bytes);
  });
}

PyObject* xxh3_128_of(PyObject* /*module*/, PyObject* data) {
  Py_buffer buffer;
  if (PyObject_GetBuffer(data, &buffer, PyBUF_SIMPLE) != 0) {
    return nullptr;
  }
  const Digest128 digest = xxh3_128(
      std::span(static_cast<const std::byte*>(buffer.buf), static_cast<std::size_t>(buffer.len)));
  PyBuffer_Release(&buffer);
  return text_or_raise(digest.hex());
}

PyMethodDef job_methods[] = {
    {"facts", job_facts, METH_NOARGS, "JSON text: identity, its digest and the partition."},
    {"complete_parts", job_complete_parts, METH_NOARGS, "Numbers of the parts complete now."},
    {"open_part", job_open_part, METH_VARARGS, "open_part(number) -> Part."},
    {nullptr, nullptr, 0, nullptr}};

PyMethodDef part_methods[] = {
    {"facts", part_facts, METH_NOARGS, "JSON text: captures, aliases and arrays."},
    {"array_facts", part_array_facts, METH_VARARGS,
     "array_facts(name) -> JSON text: layout of one array, checked against the manifest."},
    {"tokens", part_tokens, METH_VARARGS, "tokens(name) -> bytes of tokens/<name>."},
    {"read_rows", part_read_rows, METH_VARARGS,
     "read_rows(array, begin, end, buffer): rows [begin, end) into a writable buffer of exactly "
     "their size."},
    {"read_dequantised", part_read_dequantised, METH_VARARGS,
     "read_dequantised(array, begin, end, dtype, buffer): rows of an fp8 array, scaled."},
    {nullptr, nullptr, 0, nullptr}};

PyMethodDef module_methods[] = {
    {"open_job", open_job, METH_VARARGS, "open_job(directory) -> Job; reads job.json alone."},
    {"xxh3_128", xxh3_128_of, METH_O, "xxh3_128(data) -> XXH3-128 of the bytes, 32 hex digits."},
    {"writable_memory", writable_memory, METH_VARARGS,
     "writable_memory(address, bytes) -> memoryview; the caller keeps the memory alive."},
    {nullptr, nullptr, 0, nullptr}};

template <typename T>
PyTypeObject* make_type(const char* name, PyMethodDef* methods) {
  PyType_Slot slots[] = {
      {Py_tp_dealloc, reinterpret_cast<void*>(destroy<T>)}, {Py_tp_methods, methods}, {0, nullptr}};
  PyType_Spec spec = {name, sizeof(Holder<T>), 0,
                      Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, slots};
  return reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&spec));
}

PyObject* make_error(PyObject* module, const char* name, const char* doc, PyObject* base) {
  const std::string full = std::string("nexus_librarian.") + name;
  PyObject* const error = PyErr_NewExceptionWithDoc(full.c_str(), doc, base, nullptr);
  if (error != nullptr && PyModule_AddObjectRef(module, name, error) != 0) {
    return nullptr;
  }
  return error;
}

bool fill_module(PyObject* module) {
  job_type = make_type<JobAccess>("nexus_librarian._decoder.Job", job_methods);
  part_type = make_type<PartAccess>("nexus_librarian._decoder.Part", part_methods);
  store_error = make_error(module, "StoreError", "Something is wrong with a store.", nullptr);
  if (job_type == nullptr || part_type == nullptr || store_error == nullptr) {
    return false;
  }
  damaged_error = make_error(module, "DamagedStoreError",
                             "Stored bytes are not what was written; names the file.", store_error);
  not_found_error =
      make_error(module, "NotInStoreError",
                 "No store there, or none of this part, sample or capture.", store_error);
  format_error =
      make_error(module, "LaterFormatError",
                 "Written in a later version of the format: update nexus-librarian.", store_error);
  return damaged_error != nullptr && not_found_error != nullptr && format_error != nullptr;
}

PyModuleDef module_definition = {PyModuleDef_HEAD_INIT,
                                 "nexus_librarian._decoder",
                                 "The activation store's C++ reader.",
                                 -1,
                                 module_methods,
                                 nullptr,
                                 nullptr,
                                 nullptr,
                                 nullptr};

}  // namespace
}  // namespace librarian::activation_store::python

// NOLINTNEXTLINE(bugprone-reserved-identifier,readability-identifier-naming): CPython looks for it
PyMODINIT_FUNC PyInit__decoder() {
  PyObject* const module = PyModule_Create(&librarian::activation_store::python::module_definition);
  if (module != nullptr && !librarian::activation_store::python::fill_module(module)) {
    Py_DECREF(module);
    return nullptr;
  }
  return module;
}
