"""Is a cache what it says?

replay       images and pixels of today against those that the teacher saw
verify       every file against the ledger, and every record against the mathematics
repair       what is damaged is put aside, what can be derived is written anew
invariants   what a record must be, whoever wrote it
moments      the same of mean and deviation, where a cache keeps them
audit        the teacher asked again about some records
divergence   how far a teacher's answer is from a record
fidelity     how near training on records comes to training on whole answers
sampling     the teacher asked for a sample before the first block, and again later
inspection   what a cache holds
"""
