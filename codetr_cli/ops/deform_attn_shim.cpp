/* The operator codetr::deform_attn for packages of AOTInductor, which call it without Python.
 *
 * It is compiled when a package is, and becomes part of it together with deform_attn.c: ops/package_kernel.py. It uses
 * PyTorch's C interface only, which stays the same from release to release.
 */
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <cstdint>
#include <cstring>
#ifdef _OPENMP
#include <omp.h>
#endif

/* `Problem` of deform_attn.c. */
struct Problem {
    const void *value, *reference, *sampling, *scores, *grad_output;
    void *output, *grad_value, *grad_sampling, *grad_scores, *grad_pixels;
    const int64_t *shapes;
    int64_t batch, tokens, heads, channels, queries, levels, points, reference_size, heads_at_once, next_task;
};

extern "C" {
const char *codetr_instruction_set(void);
int codetr_forward_float_base(Problem *);
#ifdef HAVE_AVX2
int codetr_forward_float_avx2(Problem *);
#endif
#ifdef HAVE_AVX512
int codetr_forward_float_avx512(Problem *);
#endif
}

namespace {

const int64_t MAX_SAMPLES = 128;           /* of deform_attn.c */
const int64_t SAMPLES_PER_THREAD = 20000;  /* of deform_attn_cpu.py */

typedef int (*Forward)(Problem *);

Forward fastest() {
    const char *name = codetr_instruction_set();
#ifdef HAVE_AVX512
    if (!std::strcmp(name, "avx512")) return codetr_forward_float_avx512;
#endif
#ifdef HAVE_AVX2
    if (!std::strcmp(name, "avx2")) return codetr_forward_float_avx2;
#endif
    return codetr_forward_float_base;
}

struct Failure {};

void check(AOTITorchError error) {
    if (error != AOTI_TORCH_SUCCESS) throw Failure();
}

void require(bool condition) {
    if (!condition) throw Failure();
}

int64_t dimensions(AtenTensorHandle tensor) {
    int64_t count;
    check(aoti_torch_get_dim(tensor, &count));
    return count;
}

const int64_t *sizes(AtenTensorHandle tensor, int64_t wanted) {
    int64_t *found;
    require(dimensions(tensor) == wanted);
    check(aoti_torch_get_sizes(tensor, &found));
    return found;
}

int32_t dtype_of(AtenTensorHandle tensor) {
    int32_t dtype;
    check(aoti_torch_get_dtype(tensor, &dtype));
    return dtype;
}

AtenTensorHandle new_tensor(const int64_t *shape, int64_t count, int32_t dtype) {
    int64_t strides[8], stride = 1;
    require(count <= 8);
    for (int64_t at = count - 1; at >= 0; at--) {
        strides[at] = stride;
        stride *= shape[at] > 1 ? shape[at] : 1;
    }
    AtenTensorHandle made;
    check(aoti_torch_empty_strided(count, shape, strides, dtype, aoti_torch_device_type_cpu(), 0, &made));
    return made;
}

/* A tensor as contiguous float32: itself, or a copy that lives as long as this object. */
class Dense {
  public:
    explicit Dense(AtenTensorHandle source) {
        bool is_contiguous;
        check(aoti_torch_is_contiguous(source, &is_contiguous));
        AtenTensorHandle used = source;
        if (!is_contiguous || dtype_of(source) != aoti_torch_dtype_float32()) {
            const int64_t count = dimensions(source);
            own_ = used = new_tensor(sizes(source, count), count, aoti_torch_dtype_float32());
            check(aoti_torch_copy_(own_, source, 0));
        }
        check(aoti_torch_get_data_ptr(used, &data));
    }
    ~Dense() {
        if (own_) aoti_torch_delete_tensor_object(own_);
    }
    Dense(const Dense &) = delete;
    Dense &operator=(const Dense &) = delete;

    void *data = nullptr;

  private:
    AtenTensorHandle own_ = nullptr;
};

void run(Problem &problem) {
    static const Forward forward = fastest();
    const int64_t samples = problem.batch * problem.queries * problem.heads * problem.levels * problem.points;
    int failures = 0;
#ifdef _OPENMP
    const int64_t useful = samples / SAMPLES_PER_THREAD, most = omp_get_max_threads();
    const int threads = static_cast<int>(useful < 1 ? 1 : useful < most ? useful : most);
#pragma omp parallel num_threads(threads) reduction(+ : failures)
    failures += forward(&problem);
#else
    failures = forward(&problem);
#endif
    require(failures == 0);
}

void attend(
    AtenTensorHandle value, const int64_t *shapes, int64_t shapes_length, AtenTensorHandle reference,
    AtenTensorHandle sampling, AtenTensorHandle scores, AtenTensorHandle *result) {
    Problem problem = {};
    const int64_t *of_value = sizes(value, 4), *of_scores = sizes(scores, 5), *of_sampling = sizes(sampling, 6);
    problem.batch = of_value[0];
    problem.tokens = of_value[1];
    problem.heads = of_value[2];
    problem.channels = of_value[3];
    problem.queries = of_scores[1];
    problem.levels = of_scores[3];
    problem.points = of_scores[4];
    problem.heads_at_once = problem.heads;
    require(of_scores[0] == problem.batch && of_scores[2] == problem.heads);
    require(!std::memcmp(of_sampling, of_scores, 5 * sizeof(int64_t)) && of_sampling[5] == 2);
    require(shapes_length == 2 * problem.levels && problem.levels * problem.points <= MAX_SAMPLES);
    require(problem.tokens * problem.heads * problem.channels < (int64_t(1) << 31));
    int64_t tokens = 0;
    for (int64_t level = 0; level < problem.levels; level++) tokens += shapes[2 * level] * shapes[2 * level + 1];
    require(tokens == problem.tokens);
    if (reference) {
        const int64_t *of_reference = sizes(reference, 4);
        problem.reference_size = of_reference[3];
        require(of_reference[0] == problem.batch && of_reference[1] == problem.queries);
        require(of_reference[2] == problem.levels && (of_reference[3] == 2 || of_reference[3] == 4));
    }
    problem.shapes = shapes;
    Dense dense_value(value), dense_sampling(sampling), dense_scores(scores);
    problem.value = dense_value.data;
    problem.sampling = dense_sampling.data;
    problem.scores = dense_scores.data;
    const int64_t shape[] = {problem.batch, problem.queries, problem.heads * problem.channels};
    AtenTensorHandle output = new_tensor(shape, 3, dtype_of(value));
    try {
        AtenTensorHandle summed = output;
        const bool is_float = dtype_of(value) == aoti_torch_dtype_float32();
        if (!is_float) summed = new_tensor(shape, 3, aoti_torch_dtype_float32());
        try {
            check(aoti_torch_get_data_ptr(summed, &problem.output));
            if (shape[0] * shape[1] * shape[2] > 0) {
                if (reference) {
                    Dense dense_reference(reference);
                    problem.reference = dense_reference.data;
                    run(problem);
                } else {
                    run(problem);
                }
            }
            if (!is_float) check(aoti_torch_copy_(output, summed, 0));
        } catch (...) {
            if (!is_float) aoti_torch_delete_tensor_object(summed);
            throw;
        }
        if (!is_float) aoti_torch_delete_tensor_object(summed);
    } catch (...) {
        aoti_torch_delete_tensor_object(output);
        throw;
    }
    *result = output;
}

}  // namespace

/* Arguments as of the operator; `backend` is always "cpu". */
extern "C" AOTITorchError aoti_torch_cpu_deform_attn(
    AtenTensorHandle value, const int64_t *flat_shapes, int64_t flat_shapes_length, AtenTensorHandle *reference_points,
    AtenTensorHandle sampling, AtenTensorHandle scores, const char *backend, AtenTensorHandle *result) {
    (void)backend;
    try {
        attend(
            value, flat_shapes, flat_shapes_length, reference_points ? *reference_points : nullptr, sampling, scores,
            result);
    } catch (...) { /* no exception may cross this interface */
        return AOTI_TORCH_FAILURE;
    }
    return AOTI_TORCH_SUCCESS;
}
