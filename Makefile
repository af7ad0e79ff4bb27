# kvmerge. A plain 'make' lists what there is.
SHELL := /bin/bash
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

ifneq ($(filter-out help clean check-lines,$(or $(MAKECMDGOALS),help)),) # these need no JDK
JDK := $(shell bin/find-jdk)
ifeq ($(JDK),)
$(error no JDK 25: see above)
endif
endif
export JAVA_HOME := $(JDK)
# Java and Maven cannot open what is not named in the locale's encoding: the checkout's folder may not be ASCII.
LOCALE := $(shell bin/find-locale)
ifneq ($(LOCALE),)
export LC_ALL := $(LOCALE)
endif
# Maven's own libraries use what newer JDKs warn about.
export MAVEN_OPTS += --sun-misc-unsafe-memory-access=allow
MAVEN := $(if $(shell command -v mvn),mvn,./mvnw)
MVN := $(MAVEN) -q -B
JOBS := $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
DOWNLOADS := $(or $(KVMERGE_DOWNLOADS),downloads)

JAR := target/kvmerge.jar
HEADERS := $(DOWNLOADS)/llama.cpp-headers/llama.h
LICENCE := $(DOWNLOADS)/llama.cpp-headers/LICENSE
NATIVE := build/native/.built
JAVA_SOURCES := $(shell find src/*/src/main jextract/generated -name '*.java') models.txt pom.xml \
    $(wildcard src/*/pom.xml)
NATIVE_SOURCES := $(shell find native -type f)

.PHONY: run quickstart test test-examples test-clients test-load test-page test-readme screenshots dist \
    check-reproducible fuzz test-native test-threads test-clang test-emulated test-java test-fast faults \
    test-relied-on test-cuda test-rpc bench bench-table jmh benchmarks build setup cuda llama-cuda llama-rpc \
    bindings relied-on docs performance check-lines format clean help native-with-llama

## run: set everything up, then run the main experiment on the small model and the book (results/)
run: build setup
	bin/kvmerge experiment --strategies full,entropy-merged,h2o,streaming-llm --compression 0.7,0.9 --tokens 4096 \
	    --offset 3000 --out results --overwrite

## quickstart: set everything up, then check in seconds that all of it works
quickstart: build setup
	bin/kvmerge quickstart

## build: the jar and the native library
build: $(JAR) $(NATIVE)

## setup: fetch llama.cpp's libraries and headers, the model and the books of models.txt that are not here
setup: $(JAR)
	@bin/kvmerge models fetch llama.cpp llama.cpp-headers smollm2-135m alice paradise-lost

$(JAR): $(JAVA_SOURCES)
	@echo "building $@ (the first time Maven fetches its plugins: half a minute)"
	@$(MVN) package -DskipTests
	@touch $@

$(HEADERS): | $(JAR)
	@bin/kvmerge models fetch llama.cpp-headers

# Headers that an older version fetched came without it.
$(LICENCE): | $(JAR)
	@rm -rf "$(DOWNLOADS)/llama.cpp-headers"
	@bin/kvmerge models fetch llama.cpp-headers

# $(call native-build,FOLDER,OPTIONS): the native library and its tests in build/FOLDER.
define native-build
@cmake -S native -B build/$(1) -DKVMERGE_LLAMA_INCLUDE="$(abspath $(DOWNLOADS))/llama.cpp-headers" \
    -DKVMERGE_WERROR=$(if $(CI),ON,OFF) $(2) > /dev/null
@cmake --build build/$(1) --parallel $(JOBS) > build/$(1)/log 2>&1 || { cat build/$(1)/log; exit 1; }
endef

$(NATIVE): $(NATIVE_SOURCES) | $(HEADERS)
	@echo "building the native library (half a minute)"
	$(call native-build,native)
	@touch $@

# GCC 13's sanitizers, and older ones, end at once or now and then where Linux moves addresses by up to 32 bits, as in
# Ubuntu 24.04. A container may forbid to turn that off.
UNMOVED = $(shell setarch -R true 2>/dev/null && echo setarch -R)

## test: build and run all tests: native, at each instruction set of this CPU and with sanitizers too, Java, the page
test: test-native test-java test-examples test-clients test-page test-readme

test-native: build setup native-with-llama $(if $(CI),cuda test-clang test-emulated) test-threads
	ctest --test-dir build/native --output-on-failure
	$(call native-build,sanitized,-DKVMERGE_SANITIZE=address)
	$(UNMOVED) ctest --test-dir build/sanitized --output-on-failure

# 'make build' comes before llama.cpp is fetched: the tests that run in it are added to build/native here.
native-with-llama: build setup
	$(call native-build,native)

## test-threads: the native tests that use threads, with ThreadSanitizer
test-threads: | $(HEADERS)
	$(call native-build,threads,-DKVMERGE_SANITIZE=thread)
	KVMERGE_TEST_SHARE=0.2 $(UNMOVED) ctest --test-dir build/threads --output-on-failure \
	    -R 'border|parallel|observer|score|isa|streams|table'

## test-clang: the native tests as clang compiles them
test-clang: setup
	$(call native-build,clang,-DCMAKE_C_COMPILER=clang -DCMAKE_CXX_COMPILER=clang++)
	ctest --test-dir build/clang --output-on-failure

## test-emulated: the native tests under qemu as Nehalem (generic), Haswell (AVX2) and 64-bit Arm (NEON)
test-emulated: build setup native-with-llama
	bin/test-emulated

test-java: build setup
	$(MAVEN) -B -ntp test

## test-examples: examples/ built against what is installed and deployed, and run; the release's tar too
test-examples: build setup $(LICENCE)
	bin/test-examples

## test-readme: what README.md's first screen says, run
test-readme: build setup
	bin/test-readme

## test-clients: clients of others against kvmerge serve: openai for Python and Java, langchain4j, curl
test-clients: build setup
	bin/test-clients

## test-load: 10,000 requests from 32 clients at once to the server, in minutes (LOAD_REQUESTS=N for another number)
LOAD_REQUESTS ?= 10000
test-load: build setup
	$(MAVEN) -B -ntp test -pl src/server -am -Dtest=LoadTest -Dsurefire.failIfNoSpecifiedTests=false \
	    -Dkvmerge.load.requests=$(LOAD_REQUESTS)

## test-page: the page of kvmerge serve in headless Chromium, against a mock server and the real one
test-page: build setup
	bin/test-page

## screenshots: make the page's screenshots in docs/ anew, of a real conversation
screenshots: build setup
	bin/test-page --screenshots

## dist: a release in build/dist: jars, a tar that needs only a JRE, checksums
dist: build setup $(LICENCE)
	bin/dist

## check-reproducible: build a release twice and compare the bytes
check-reproducible: build setup $(LICENCE)
	bin/check-reproducible

## fuzz: kvmerge.h called rightly and wrongly (FUZZ_CALLS=1000000), GGUF headers (FUZZ_CASES=20000); FUZZ_SEED=N
FUZZ_CALLS ?= 1000000
FUZZ_CASES ?= 20000
FUZZ_SEED ?= $(shell date +%s)
fuzz: build setup
	$(call native-build,sanitized,-DKVMERGE_SANITIZE=address)
	$(UNMOVED) build/sanitized/fuzz_border $(FUZZ_SEED) $(FUZZ_CALLS)
	$(MAVEN) -B -ntp test -pl src/library -Dtest=GgufFuzzTest -Dkvmerge.fuzz.cases=$(FUZZ_CASES) \
	    -Dkvmerge.fuzz.seed=$(FUZZ_SEED)

## test-fast: the tests that need nothing but a JDK and Maven
test-fast:
	$(MAVEN) -B -ntp test -Dgroups=fast

## cuda: build the CUDA part (libkvmerge-cuda.so); needs no GPU. CUDA_ARCHS="80 90" narrows it
CUDA_ARCHS ?= 80 86 89 90 120
CUDA_SOURCES := $(shell find native/src/cuda native/src/kernels/kernels.hpp native/src/device.hpp -type f)
cuda: build/native/libkvmerge-cuda.so

build/native/libkvmerge-cuda.so: $(CUDA_SOURCES) | $(NATIVE)
	@bin/build-cuda library $@ $(CUDA_ARCHS)

## faults: an experiment killed at KILLS random moments (100), each time resumed to the same results
KILLS ?= 100
faults: build setup
	$(MAVEN) -B -ntp test -Dtest=FaultsTest -Dsurefire.failIfNoSpecifiedTests=false -Dkvmerge.faults.kills=$(KILLS)

## test-relied-on: whether the llama.cpp that was fetched has what kvmerge relies on (jextract/relied-on.txt)
test-relied-on: build setup
	ctest --test-dir build/native --output-on-failure -R relied_on
	$(MAVEN) -B -ntp test -pl src/library -Dtest=ReliedOnTest

## test-cuda: the CUDA kernels and an experiment on the GPU that is here, against the CPU
test-cuda: cuda setup
	bin/test-cuda

## bench-cuda: the CUDA kernels beside copying and cuBLAS, on the GPU that is here; writes docs/results/gpu-kernels.csv
.PHONY: bench-cuda
bench-cuda:
	bin/bench-cuda docs/results/gpu-kernels.csv

## llama-cuda: build llama.cpp with its CUDA backend for this machine's GPU, where the npm build does not suit it (long)
llama-cuda:
	bin/build-llama cuda

## llama-rpc: build llama.cpp with its RPC backend and server (minutes)
llama-rpc:
	bin/build-llama rpc

## llama-server: build llama-server of the same llama.cpp, to compare with (long)
.PHONY: llama-server
llama-server:
	bin/build-llama server

## test-rpc: an experiment against two RPC servers on this machine, against the same one here
test-rpc: build setup native-with-llama llama-rpc
	bin/test-rpc

## bench: every kernel beside copying and Java, as a table; BENCH=--quick for a look in two minutes
BENCH_JAVA := $(JDK)/bin/java --sun-misc-unsafe-memory-access=allow --add-modules jdk.incubator.vector \
    --enable-native-access=ALL-UNNAMED -Xmx6g -Dkvmerge.home="$(CURDIR)" -cp benchmarks/target/benchmarks.jar
bench: benchmarks
	$(BENCH_JAVA) dev.kvmerge.benchmarks.Table $(BENCH)

## bench-table: the same, written into docs/kernels.md
bench-table: benchmarks
	$(BENCH_JAVA) dev.kvmerge.benchmarks.Table > build/kernels.md
	bin/kvmerge docs --take kernels build/kernels.md

## jmh: any JMH benchmark of benchmarks/, as in make jmh JMH='PlanBenchmark -f 1'
jmh: benchmarks
	$(BENCH_JAVA) org.openjdk.jmh.Main $(JMH)

benchmarks: build setup
	@$(MVN) install -DskipTests
	@$(MVN) -f benchmarks/pom.xml package

## bindings: regenerate jextract/generated from the headers (needs jextract on the PATH, or JEXTRACT=path)
bindings: $(HEADERS)
	jextract/generate.sh "$(DOWNLOADS)/llama.cpp-headers"
	@$(MAKE) relied-on

## relied-on: write jextract/relied-on.txt, the list of what kvmerge relies on in llama.cpp
relied-on:
	@$(MVN) test-compile -pl src/library
	@$(JDK)/bin/java --enable-native-access=ALL-UNNAMED -Dkvmerge.home="$(CURDIR)" \
	    -cp src/library/target/classes:src/library/target/test-classes dev.kvmerge.ReliedOn

## docs: write the pages of docs that are made of docs/templates and docs/results, and of the command line
docs: $(JAR)
	bin/kvmerge docs

## performance: run what docs/results lacks in results/performance (hours), and write the pages
performance: build setup
	bin/performance

## check-lines: list lines of more than 120 columns
check-lines:
	@bin/check-lines

## format: format the Java and C++ sources
format:
	$(MVN) -N spotless:apply
	@if command -v clang-format > /dev/null; then \
	        clang-format -i $$(find native -name '*.[ch]pp' -o -name '*.[ch]' -o -name '*.cu' -o -name '*.cuh'); \
	    else echo "clang-format is not installed ('pip install clang-format==18.1.8' brings it): C++ left as it is"; fi

## clean: delete what was built; downloads/ and results/ stay
clean:
	rm -rf target src/*/target build benchmarks/target src/server/src/test/page/node_modules

## help: this list
help:
	@sed -n 's/^## \([a-z-]*\): \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 28
